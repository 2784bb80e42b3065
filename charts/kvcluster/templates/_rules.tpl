{{/*
What the operator may do where it looks after clusters: in every namespace of watchNamespaces by a Role, or everywhere by
a ClusterRole. Exactly the verbs that it uses.
*/}}
{{- define "kvcluster.rules" -}}
# The clusters: read them, set the finalizer, write the status. It never makes or deletes one.
- apiGroups: ["kvcluster.dev"]
  resources: ["kvclusters"]
  verbs: ["get", "list", "watch", "patch"]
- apiGroups: ["kvcluster.dev"]
  resources: ["kvclusters/status"]
  verbs: ["patch"]
# Owner references with blockOwnerDeletion need this where that admission check is on.
- apiGroups: ["kvcluster.dev"]
  resources: ["kvclusters/finalizers"]
  verbs: ["update"]
# What a cluster consists of, written by server-side apply. Services and budgets go with their owner, the cluster.
- apiGroups: ["apps"]
  resources: ["statefulsets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
- apiGroups: [""]
  resources: ["services"]
  verbs: ["get", "list", "watch", "create", "patch"]
- apiGroups: ["policy"]
  resources: ["poddisruptionbudgets"]
  verbs: ["get", "list", "watch", "create", "patch"]
# Secrets are read by the names that a cluster gives, never listed. A node that left leaves no password behind.
- apiGroups: [""]
  resources: ["secrets"]
  verbs: ["get", "create", "patch", "delete"]
# A node whose template changed, or whose Kubernetes node is lost, is restarted by deleting its pod.
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["list", "watch", "delete"]
- apiGroups: ["events.k8s.io"]
  resources: ["events"]
  verbs: ["create", "patch"]
{{- end -}}
