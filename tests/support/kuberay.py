"""What KubeRay 1.6 takes, as far as our manifests use it: small schemas by hand that allow no other field."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def record(required: tuple[str, ...], **fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


def listed(items: Schema) -> Schema:
    """A list with at least one such item."""
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*values: str) -> Schema:
    """One of these texts."""
    return {"enum": list(values)}


TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}
PREFIX: Schema = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]*-$"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
"""Of `rayStartParams`: numbers there are written as texts."""
AMOUNT: Schema = {"type": "string", "pattern": r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$"}

SECRET = record(("secretKeyRef",), secretKeyRef=record(("name", "key"), name=NAME, key=TEXT))
ENVIRONMENT = listed(
    {
        "oneOf": [
            record(("name", "value"), name=TEXT, value=TEXT),
            record(("name", "valueFrom"), name=TEXT, valueFrom=SECRET),
        ]
    }
)
AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"cpu": AMOUNT, "memory": AMOUNT, "nvidia.com/gpu": AMOUNT},
}
CONTAINER = record(
    ("name", "image", "resources"),
    name=NAME,
    image=TEXT,
    env=ENVIRONMENT,
    ports=listed(record(("containerPort", "name"), containerPort={"type": "integer", "minimum": 1}, name=NAME)),
    resources=record(("requests", "limits"), requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=listed(record(("name", "mountPath"), name=NAME, mountPath=TEXT)),
)
POD = record(
    ("containers", "restartPolicy"),
    serviceAccountName=NAME,
    restartPolicy=one_of("Never"),
    terminationGracePeriodSeconds=COUNT,
    tolerations=listed(
        record(("key", "operator", "effect"), key=TEXT, operator=one_of("Exists"), effect=one_of("NoSchedule"))
    ),
    containers=listed(CONTAINER),
    volumes=listed(
        record(
            ("name", "persistentVolumeClaim"), name=NAME, persistentVolumeClaim=record(("claimName",), claimName=NAME)
        )
    ),
)
TEMPLATE = record(("spec",), spec=POD)
CLUSTER = record(
    ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=record(("mode",), mode=one_of("token")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(
        ("version",),
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    ),
    gcsFaultToleranceOptions=record(
        ("redisAddress",),
        redisAddress={"type": "string", "pattern": "^rediss?://"},
        redisPassword=record(("valueFrom",), valueFrom=SECRET),
    ),
    headGroupSpec=record(("rayStartParams", "template"), rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs=listed(
        record(
            ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)


def resource(kind: str, spec: Schema, metadata: Schema) -> Schema:
    """A custom resource of KubeRay."""
    return record(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=metadata,
        spec=spec,
    )


NAMED = record(("name",), name=NAME)
KINDS = {
    "RayCluster": resource("RayCluster", CLUSTER, NAMED),
    "RayJob": resource(
        "RayJob",
        record(
            ("entrypoint", "backoffLimit", "rayClusterSpec"),
            entrypoint=TEXT,
            submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode"),
            backoffLimit=COUNT,
            submitterConfig=record(("backoffLimit",), backoffLimit=COUNT),
            shutdownAfterJobFinishes=FLAG,
            ttlSecondsAfterFinished=COUNT,
            runtimeEnvYAML=TEXT,
            rayClusterSpec=CLUSTER,
        ),
        record(("generateName",), generateName=PREFIX),
    ),
    "RayService": resource(
        "RayService",
        record(("serveConfigV2", "rayClusterConfig"), serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
        NAMED,
    ),
}
