#!/bin/sh
# The same by the server's own command line.
#
# Usage: client.sh HOST:PORT IMAGE_FOLDER CA_FILE, with the key in SHIPREID_API_KEY
set -eu
server=$1 images=$2 ca=$3

# [connect]
export SHIPREID_ENDPOINT="https://$server"
shipreid model list --ca "$ca"
# [/connect]

# [enrol]
shipreid gallery create example-commands --ca "$ca"
cat > sightings.jsonl <<END
{"file": "0001_a_33x97_RGB.tif", "entry_id": "a", "vessel_id": "anna", "labels": {"port": "Kiel"}, "observed_at": "2026-02-25T06:13:20Z", "latitude": 54.4, "longitude": 10.2}
{"file": "0003_c_25x110_SAR.tif", "entry_id": "b", "vessel_id": "berta"}
END
shipreid gallery enroll example-commands "$images/0001_a_33x97_RGB.tif" "$images/0003_c_25x110_SAR.tif" \
    --manifest sightings.jsonl --ca "$ca"
# [/enrol]

# [match]
shipreid match "$images/0001_a_33x97_RGB.tif" --gallery example-commands --from 2026-02-13T00:00:00Z --not-vessel berta \
    --min-similarity 0.5 --ca "$ca" --json > matched.json
# [/match]
expect() {
    grep --quiet --fixed-strings -- "$2" "$1" || { echo "$2 was expected, not $(cat "$1")" >&2; exit 1; }
}
expect matched.json '"anna"'

# [error]
shipreid gallery create ../up --ca "$ca" 2> refused.txt || echo "exit code $?: $(cat refused.txt)"
# [/error]
expect refused.txt 'GALLERY_NAME_INVALID'

shipreid gallery delete example-commands --yes --ca "$ca"
echo ok
