"""The twin: traffic, a vLLM replica, the fleet, its autoscaler. Loads no torch, vllm, mlflow."""
