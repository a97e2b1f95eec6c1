# Simple text-to-video with audio (9:16 portrait mobile)
curl -X POST http://<SERVER>:8000/generate \
  -H "Content-Type: application/json" \
  -d '{"prompt": "A cat sitting calmly on a cushion", "width": 288, "height": 512}'

# Best quality (mobile, ~2 seconds)
curl -X POST http://<SERVER>:8000/generate \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "A cat playing piano, studio lighting, camera pans slowly",
    "width": 288,
    "height": 512,
    "num_frames": 49,
    "num_inference_steps": 40,
    "guidance_scale": 3.0
  }'

# Quick preview (test prompts fast)
curl -X POST http://<SERVER>:8000/generate \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "A cat playing piano",
    "width": 288,
    "height": 512,
    "num_frames": 9,
    "num_inference_steps": 5
  }'

# Image-to-video (start frame)
curl -X POST http://<SERVER>:8000/generate \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "The scene animates with gentle movement",
    "width": 288,
    "height": 512,
    "image_start": "data:image/png;base64,<BASE64_IMAGE>"
  }'

# Image-to-video (start + end frame interpolation)
curl -X POST http://<SERVER>:8000/generate \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "Smooth transition between two scenes",
    "width": 288,
    "height": 512,
    "image_start": "data:image/png;base64,<START_IMAGE>",
    "image_end": "data:image/png;base64,<END_IMAGE>"
  }'
