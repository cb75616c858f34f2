"""The twin: traffic, one vLLM replica, the fleet and its autoscaler. Loads no torch, vllm or mlflow."""
