#!/bin/sh
# The contract without generated code: enrols, matches, reads an error, streams.
#
# Usage: client.sh HOST:PORT IMAGE_FOLDER CA_FILE, with the key in SHIPREID_API_KEY
set -eu
server=$1 images=$2 ca=$3

# [connect]
# What a method takes comes from the server's reflection. Messages are JSON on standard input, bytes in it are base64; a
# stream is one message after another.
call() {
    grpcurl -cacert "$ca" -expand-headers -H 'authorization: Bearer ${SHIPREID_API_KEY}' -d @ "$server" "shipreid.v1.$1"
}
echo '{}' | call Models/GetModel
# [/connect]

# [enrol]
optical=$(base64 --wrap=0 "$images/0001_a_33x97_RGB.tif")
sar=$(base64 --wrap=0 "$images/0003_c_25x110_SAR.tif")
echo '{"name": "example-grpcurl"}' | call Galleries/CreateGallery
call Galleries/Enroll > enrolled.json <<END
{"gallery": "example-grpcurl", "entry_id": "a", "vessel_id": "anna", "labels": {"port": "Kiel"},
 "chip": {"image": "$optical", "modality": "MODALITY_OPTICAL",
          "observation": {"observed_at": "2026-02-25T06:13:20Z", "latitude": 54.4, "longitude": 10.2}}}
{"entry_id": "b", "vessel_id": "berta", "chip": {"image": "$sar", "modality": "MODALITY_SAR"}}
{"entry_id": "c", "chip": {"image": "$(printf 'no image' | base64)", "modality": "MODALITY_SAR"}}
END
# [/enrol]
expect() {
    grep --quiet --fixed-strings -- "$2" "$1" || { echo "$2 was expected, not $(cat "$1")" >&2; exit 1; }
}
expect enrolled.json '"outcome": "ENROLL_OUTCOME_CREATED"'
expect enrolled.json '"reason": "IMAGE_FORMAT_UNKNOWN"'

# [match]
call ShipReId/Match > matched.json <<END
{"gallery": "example-grpcurl", "queries": [{"tracklet": {"chips": [{"image": "$optical", "modality": "MODALITY_OPTICAL"}]}}],
 "filter": {"time_range": {"start": "2026-02-13T00:00:00Z"}, "exclude_vessel_ids": ["berta"]},
 "min_similarity": 0.5, "with_details": true}
END
# [/match]
expect matched.json '"vesselId": "anna"'
expect matched.json '"port": "Kiel"'

# [error]
echo '{"name": "../up"}' | call Galleries/CreateGallery 2> refused.txt || echo "exit code $?: $(cat refused.txt)"
# [/error]
expect refused.txt 'Code: InvalidArgument'
expect refused.txt '"reason":"GALLERY_NAME_INVALID"'
expect refused.txt '"field":"name"'

echo '{"gallery": "example-grpcurl"}' | call Galleries/ExportGallery > exported.json
expect exported.json '"data"'
echo '{"name": "example-grpcurl"}' | call Galleries/DeleteGallery
echo ok
