#!/bin/sh
# The contract without generated code, by `buf curl`: enrols, matches, reads an error, streams.
#
# Usage: client.sh HOST:PORT IMAGE_FOLDER CA_FILE, with the key in SHIPREID_API_KEY
set -eu
server=$1 images=$2 ca=$3

# [connect]
# What a method takes comes from the server's reflection. Messages are JSON on standard input, bytes in it are base64; a
# stream is one message after another.
umask 077 && echo "authorization: Bearer $SHIPREID_API_KEY" > headers
call() {
    buf curl --protocol grpc --cacert "$ca" --header @headers --reflect-header '*' --data @- "https://$server/shipreid.v1.$1"
}
echo '{}' | call Models/GetModel
# [/connect]

optical=$(base64 --wrap=0 "$images/0001_a_33x97_RGB.tif")
echo '{"name": "example-buf"}' | call Galleries/CreateGallery
call Galleries/Enroll > enrolled.json <<END
{"gallery": "example-buf", "entry_id": "a", "vessel_id": "anna", "chip": {"image": "$optical", "modality": "MODALITY_OPTICAL"}}
{"entry_id": "c", "chip": {"image": "$(printf 'no image' | base64)", "modality": "MODALITY_SAR"}}
END
expect() {
    grep --quiet --fixed-strings -- "$2" "$1" || { echo "$2 was expected, not $(cat "$1")" >&2; exit 1; }
}
expect enrolled.json 'ENROLL_OUTCOME_CREATED'
expect enrolled.json 'IMAGE_FORMAT_UNKNOWN'

call ShipReId/Match > matched.json <<END
{"gallery": "example-buf", "queries": [{"tracklet": {"chips": [{"image": "$optical", "modality": "MODALITY_OPTICAL"}]}}]}
END
expect matched.json '"anna"'

# [error]
echo '{"name": "../up"}' | call Galleries/CreateGallery 2> refused.txt || echo "exit code $?: $(cat refused.txt)"
# [/error]
expect refused.txt '"code": "invalid_argument"'
# The details are there, and not decoded.
expect refused.txt '"type": "google.rpc.ErrorInfo"'

echo '{"name": "example-buf"}' | call Galleries/DeleteGallery
echo ok
