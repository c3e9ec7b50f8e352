#!/bin/sh
# Uploads one file: ask for a presigned URL with the four query parameters, then PUT the bytes, without a key.
set -eu
: "${BASE_URL:?}" "${API_KEY:?}" "${TENANT_ID:?}" "${DATASET_ID:?}" "${DATATABLE_ID:?}"
file=$1
size=$(stat -c %s "$file")
modified=$(($(stat -c %Y "$file") * 1000))
answer=$(curl -fsS -G -H "x-api-key: $API_KEY" \
  --data-urlencode "datasetid=$DATASET_ID" --data-urlencode "filename=$(basename "$file")" \
  --data-urlencode "filesize=$size" --data-urlencode "filelastmodified=$modified" \
  "$BASE_URL/tenant/$TENANT_ID/datatable/$DATATABLE_ID/uploads/presignedurl")
url=$(printf '%s' "$answer" | sed -n 's/.*"PreSignedUploadUrl": *"\([^"]*\)".*/\1/p')
curl -fsS -X PUT -H 'Content-Type:' --data-binary "@$file" "$url"
