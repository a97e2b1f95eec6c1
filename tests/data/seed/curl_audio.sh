# Convert audio to base64
AUDIO_B64=$(base64 -w0 input.wav)

# Generate video conditioned on audio
curl -X POST http://<SERVER>:8000/generate \
  -H "Content-Type: application/json" \
  -d "{
    \"prompt\": \"A person speaking in front of a camera\",
    \"width\": 288,
    \"height\": 512,
    \"audio\": \"data:audio/wav;base64,$AUDIO_B64\"
  }"
