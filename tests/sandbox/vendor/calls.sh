#!/bin/sh
# Uploads a file: a presigned URL for the four query parameters, and a PUT without a key. Then a process, its BPMN model,
# a mapping of it to the datatable, and a user. Prints the answers, one a line.
set -eu
: "${BASE_URL:?}" "${API_KEY:?}" "${TENANT_ID:?}" "${DATASET_ID:?}" "${DATATABLE_ID:?}" "${FILE:?}" "${MODEL:?}"

call() { # METHOD PATH BODY
  curl -fsS -X "$1" -H "x-api-key: $API_KEY" -H 'Content-Type: application/json' --data-binary "$3" \
    "$BASE_URL/tenant/$TENANT_ID$2"
  echo
}

text_of() { # FIELD, of the JSON on standard input
  sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"
}

answer=$(curl -fsS -G -H "x-api-key: $API_KEY" \
  --data-urlencode "datasetid=$DATASET_ID" --data-urlencode "filename=$(basename "$FILE")" \
  --data-urlencode "filesize=$(stat -c %s "$FILE")" --data-urlencode "filelastmodified=$(($(stat -c %Y "$FILE") * 1000))" \
  "$BASE_URL/tenant/$TENANT_ID/datatable/$DATATABLE_ID/uploads/presignedurl")
url=$(printf '%s' "$answer" | text_of PreSignedUploadUrl)
curl -fsS -X PUT -H 'Content-Type:' --data-binary "@$FILE" "$url"

made=$(call POST /processes '{"displayName": "Order to cash", "treeParentId": null, "treeNodeType": "Process"}')
echo "$made"
process=$(printf '%s' "$made" | text_of id)
bpmn=$(sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' "$MODEL" | awk '{ printf "%s\\n", $0 }')
call PUT "/processes/$process/bpmn" "{\"bpmnXml\": \"$bpmn\"}"
call POST "/processes/$process/mappings" \
  "{\"dataTableId\": \"$DATATABLE_ID\", \"displayName\": \"Orders\", \"color\": {\"id\": \"data-1\"}, \"showByDefault\": true}"
call POST /users '{"email": "ada@example.com", "firstName": "Ada", "lastName": "Lovelace", "isActiveInTenant": true,
  "isAdminInTenant": false, "isDeveloperInTenant": false}'
