"""Uploads one file: ask for a presigned URL with the four query parameters, then PUT the bytes, without a key."""

import json
import os
import sys
import urllib.parse
import urllib.request

base, key = os.environ["BASE_URL"], os.environ["API_KEY"]
tenant, dataset, datatable = (os.environ[name] for name in ("TENANT_ID", "DATASET_ID", "DATATABLE_ID"))
path = sys.argv[1]
query = urllib.parse.urlencode(
    {
        "datasetid": dataset,
        "filename": os.path.basename(path),
        "filesize": os.path.getsize(path),
        "filelastmodified": int(os.path.getmtime(path) * 1000),
    }
)
ask = urllib.request.Request(
    f"{base}/tenant/{tenant}/datatable/{datatable}/uploads/presignedurl?{query}", headers={"x-api-key": key}
)
with urllib.request.urlopen(ask) as answer:
    url = json.load(answer)["PreSignedUploadUrl"]
with open(path, "rb") as file:
    put = urllib.request.Request(url, data=file.read(), method="PUT")
put.add_unredirected_header("Content-Type", "")
with urllib.request.urlopen(put) as answer:
    print(answer.status)
