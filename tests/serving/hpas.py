"""A manifest with everything in it, and one change of it at a time."""

from __future__ import annotations

MANIFEST = """\
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: chat
  namespace: llm
  creationTimestamp: 2026-01-01T00:00:00Z
  labels: {team: "on"}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
  maxReplicas: 12
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
  - type: ContainerResource
    containerResource: {name: memory, container: vllm, target: {type: AverageValue, averageValue: 8Gi}}
  - type: Pods
    pods: {metric: {name: vllm_num_requests_waiting}, target: {type: AverageValue, averageValue: 10}}
  - type: Object
    object:
      describedObject: {apiVersion: networking.k8s.io/v1, kind: Ingress, name: front}
      metric: {name: requests, selector: {matchLabels: {path: chat}}}
      target: {type: Value, value: 1.5k}
  - type: External
    external:
      metric:
        name: queue
        selector: {matchExpressions: [{key: model, operator: In, values: [a, b]}]}
      target: {type: AverageValue, averageValue: 2.5}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      selectPolicy: Max
      policies:
      - {type: Percent, value: 100, periodSeconds: 15}
      - {type: Pods, value: 4, periodSeconds: 15}
      tolerance: 0.05
    scaleDown: {}
status: {currentReplicas: 3, desiredReplicas: 3}
"""


def changed(old: str, new: str) -> str:
    assert MANIFEST.count(old) == 1
    return MANIFEST.replace(old, new)
