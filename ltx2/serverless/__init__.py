"""What the RunPod worker needs beside the model: how its results travel, its progress, its health at the start."""
