import requests
import base64

def generate_video(prompt, server="http://localhost:8000",
                   width=288, height=512, num_frames=49,
                   steps=30, image_start_path=None, image_end_path=None,
                   image_strength=1.0, audio_path=None):
    payload = {
        "prompt": prompt,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "include_audio": True,
    }

    if image_start_path:
        with open(image_start_path, "rb") as f:
            payload["image_start"] = f"data:image/png;base64,{base64.b64encode(f.read()).decode()}"
        payload["image_strength"] = image_strength

    if image_end_path:
        with open(image_end_path, "rb") as f:
            payload["image_end"] = f"data:image/png;base64,{base64.b64encode(f.read()).decode()}"

    if audio_path:
        with open(audio_path, "rb") as f:
            payload["audio"] = f"data:audio/wav;base64,{base64.b64encode(f.read()).decode()}"

    response = requests.post(f"{server}/generate", json=payload, timeout=300)
    result = response.json()

    if "error" in result or "detail" in result:
        raise Exception(result.get("error") or result.get("detail"))

    # Save video
    video_data = result["video"].split(",")[1]
    output_file = "output.mp4"
    with open(output_file, "wb") as f:
        f.write(base64.b64decode(video_data))

    print(f"Saved: {output_file}")
    print(f"  Generation time: {result['generation_time_seconds']}s")
    print(f"  Has audio: {result['has_audio']}")
    print(f"  Image start: {result.get('has_image_start', False)}")
    print(f"  Image end: {result.get('has_image_end', False)}")

    return result

# Text-to-video
generate_video("A cat sitting calmly on a cushion, soft lighting")

# Image-to-video (start frame only)
generate_video("The scene comes alive with gentle movement",
               image_start_path="start.png")

# Image-to-video (start + end frame interpolation)
generate_video("Smooth transition between two scenes",
               image_start_path="start.png",
               image_end_path="end.png")

# Audio-to-video (sync video to audio input)
generate_video("A person speaking in front of a camera",
               audio_path="speech.wav")

# Quick preview (fewer frames/steps)
generate_video("A quick test", num_frames=9, steps=5)
