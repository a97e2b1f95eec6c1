#!/bin/bash
SERVER="${LTX_SERVER:-http://localhost:8000}"

generate_video() {
    local prompt="$1"
    local output="${2:-output.mp4}"

    curl -s --max-time 300 -X POST "$SERVER/generate" \
        -H "Content-Type: application/json" \
        -d "{\"prompt\": \"$prompt\", \"width\": 288, \"height\": 512}" \
    | python3 -c "
import sys, json, base64
data = json.load(sys.stdin)
if 'error' in data or 'detail' in data:
    print(f'Error: {data}')
    sys.exit(1)
video = data['video'].split(',')[1]
with open('$output', 'wb') as f:
    f.write(base64.b64decode(video))
print(f'Saved: $output ({data[\"duration_seconds\"]}s, gen_time={data[\"generation_time_seconds\"]}s)')
"
}

# Usage
generate_video "A cat playing piano" "cat_piano.mp4"
