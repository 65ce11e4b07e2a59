{{- /* The labels of what the chart makes. */ -}}
{{- define "choir.labels" -}}
app.kubernetes.io/name: choir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What every pod of the cluster has: (dict "root" $ "pod" .Values.head). */ -}}
{{- define "choir.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .pod.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
volumes:
  - name: choir
    persistentVolumeClaim: {claimName: {{ .root.Values.storage.existingClaim | default .root.Release.Name }}}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: 2Gi}
{{- end }}

{{- /* What every container of the cluster has. */ -}}
{{- define "choir.container" -}}
image: {{ .root.Values.image.repository }}:{{ .root.Values.image.tag }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  - name: CHOIR_DATABASE_URL
    valueFrom: {secretKeyRef: {name: {{ .root.Values.secret }}, key: database-url}}
  - name: CHOIR_ADMIN_TOKEN
    valueFrom: {secretKeyRef: {name: {{ .root.Values.secret }}, key: admin-token}}
  # What Choir sets for a Ray of its own (serve/ray_options.py).
  - {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: serve.gateway.http.ingress.middlewares}
  - {name: RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD, value: "0"}
  - {name: RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP, value: "0"}
  - {name: RAY_SERVE_USE_GRPC_BY_DEFAULT, value: "1"}
  - {name: RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE, value: "1000"}
  - {name: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, value: "2147483647"}
resources: {{ toJson .pod.resources }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: choir, mountPath: /srv/choir}
  - {name: shm, mountPath: /dev/shm}
{{- end }}
