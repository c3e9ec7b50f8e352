{{- define "pmwatch.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pmwatch.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pmwatch.labels" -}}
{{ include "pmwatch.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pmwatch.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-config" (include "pmwatch.fullname" .)) -}}
{{- end -}}

{{/* What the schema cannot say in plain words. */}}
{{- define "pmwatch.check" -}}
{{- if and .Values.config .Values.existingConfigMap -}}
{{- fail "config and existingConfigMap are both set: remove one of them" -}}
{{- end -}}
{{- if not .Values.existingConfigMap -}}
{{- range list "tenants" "folders" -}}
{{- if not (contains (printf "[[%s]]" .) $.Values.config) -}}
{{- fail (printf "config: it has no [[%s]]: give pmwatch's configuration (--set-file config=config.toml), or name an existingConfigMap" .) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "(?m)^\\s*api_key\\s*=" .Values.config -}}
{{- fail "config: api_key would put the key where everybody reads it: put it into the Secret of keysSecret, and its path into api_key_file" -}}
{{- end -}}
{{- end -}}
{{- if and (ne .Values.mode "watch") (not .Values.writer.image) -}}
{{- fail (printf "writer.image: mode %q needs the image of what writes the files" .Values.mode) -}}
{{- end -}}
{{- range .Values.writer.volumeMounts -}}
{{- if has .name (list "state" "keys" "config") -}}
{{- fail (printf "writer.volumeMounts: %s is pmwatch's own; mount a volume of extraVolumes" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.env -}}
{{- if has .name (list "PMWATCH_STATE_DIR" "PMWATCH_HTTP_LISTEN" "PMWATCH_DELIVERY_SHUTDOWN_GRACE" "PMWATCH_DELIVERY_DRAIN_TIMEOUT") -}}
{{- fail (printf "env: %s is set by the chart; see drainTimeoutSeconds and shutdownGraceSeconds" .name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled (eq .Values.mode "export-once") -}}
{{- fail "podMonitor.enabled: mode export-once ends before it could be scraped; watch its Jobs instead" -}}
{{- end -}}
{{- if ge (int .Values.shutdownGraceSeconds) (int .Values.drainTimeoutSeconds) -}}
{{- fail "shutdownGraceSeconds must be less than drainTimeoutSeconds: it is what remains of a drain when time is up" -}}
{{- end -}}
{{- end -}}

{{- define "pmwatch.locked" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* pmwatch itself: a dict of root, flag (--drain or --once) and sidecar. */}}
{{- define "pmwatch.container" -}}
{{- $values := .root.Values -}}
name: pmwatch
{{- if $values.image.digest }}
image: {{ printf "%s@%s" $values.image.repository $values.image.digest }}
{{- else }}
image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{- if .sidecar }}
# A native sidecar: started before the writer and stopped after it, so the last file of the writer is still seen.
restartPolicy: Always
{{- end }}
args: [run, --config, /etc/pmwatch/config.toml, {{ .flag }}]
env:
  - name: PMWATCH_STATE_DIR
    value: /var/lib/pmwatch
  # Probes and Prometheus come from outside the Pod; the NetworkPolicy says who may.
  - name: PMWATCH_HTTP_LISTEN
    value: 0.0.0.0:9108
  - name: PMWATCH_DELIVERY_SHUTDOWN_GRACE
    value: {{ printf "%ds" (int $values.shutdownGraceSeconds) }}
  - name: PMWATCH_DELIVERY_DRAIN_TIMEOUT
    value: {{ printf "%ds" (int $values.drainTimeoutSeconds) }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if eq .flag "--drain" }}
ports:
  - name: pmwatch-http
    containerPort: 9108
# A writer starts once this one succeeds: /healthz and not /readyz, because a folder that only the writer creates
# keeps pmwatch from being ready.
startupProbe:
  httpGet:
    path: /healthz
    port: pmwatch-http
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet:
    path: /healthz
    port: pmwatch-http
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: pmwatch-http
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
{{ include "pmwatch.locked" .root }}
volumeMounts:
  - name: drop
    mountPath: {{ $values.drop.mountPath }}
  - name: state
    mountPath: /var/lib/pmwatch
  # Whole directories and no subPath, which would freeze the first content.
  - name: config
    mountPath: /etc/pmwatch
    readOnly: true
  - name: keys
    mountPath: /run/secrets/pmwatch
    readOnly: true
  - name: tmp
    mountPath: /tmp
{{- end -}}

{{- define "pmwatch.writer" -}}
{{- $writer := .Values.writer -}}
name: writer
image: {{ $writer.image }}
{{- range $key := list "command" "args" "env" "envFrom" }}
{{- with get $writer $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if eq .Values.mode "sftp" }}
ports:
  - name: sftp
    containerPort: {{ $writer.port }}
{{- end }}
resources:
  {{- toYaml $writer.resources | nindent 2 }}
{{ include "pmwatch.locked" . }}
volumeMounts:
  - name: drop
    mountPath: {{ .Values.drop.mountPath }}
  {{- with $writer.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Labels, annotations and spec of the Pod. */}}
{{- define "pmwatch.podTemplate" -}}
{{- include "pmwatch.check" . -}}
{{- $job := hasPrefix "export" .Values.mode -}}
metadata:
  labels:
    {{- include "pmwatch.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A changed configuration rolls the Pod out anew.
    checksum/config: {{ .Values.config | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- if $job }}
  restartPolicy: Never
  {{- end }}
  # The writer ends first, then pmwatch drains, with 10 s to spare.
  terminationGracePeriodSeconds: {{ add (ternary 0 .Values.writer.stopSeconds (eq .Values.mode "watch")) .Values.drainTimeoutSeconds 10 }}
  automountServiceAccountToken: false
  # A Service named "pmwatch" would put PMWATCH_... variables into the environment, where settings are read.
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with get $.Values $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    # The same user for writer and pmwatch: the owner of a file may take a read lease on it, which tells whether it is
    # still being written, without any capability.
    runAsUser: {{ .Values.user }}
    runAsGroup: {{ .Values.user }}
    fsGroup: {{ .Values.user }}
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- if eq .Values.mode "export-once" }}
  initContainers:
    - {{- include "pmwatch.writer" . | nindent 6 }}
  containers:
    - {{- include "pmwatch.container" (dict "root" . "flag" "--once") | nindent 6 }}
  {{- else if eq .Values.mode "watch" }}
  containers:
    - {{- include "pmwatch.container" (dict "root" . "flag" "--drain") | nindent 6 }}
  {{- else }}
  initContainers:
    - {{- include "pmwatch.container" (dict "root" . "flag" "--drain" "sidecar" true) | nindent 6 }}
  containers:
    - {{- include "pmwatch.writer" . | nindent 6 }}
  {{- end }}
  volumes:
    - name: drop
      persistentVolumeClaim:
        claimName: {{ .Values.drop.existingClaim | default (printf "%s-drop" (include "pmwatch.fullname" .)) }}
    - name: state
      persistentVolumeClaim:
        claimName: {{ .Values.state.existingClaim | default (printf "%s-state" (include "pmwatch.fullname" .)) }}
    - name: config
      configMap:
        name: {{ include "pmwatch.configMap" . }}
    - name: keys
      secret:
        secretName: {{ .Values.keysSecret }}
        defaultMode: 0440
        # Without its key pmwatch starts, keeps the files and says so; the writer is not held up.
        optional: true
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
