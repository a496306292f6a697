#!/bin/sh
# Stands in for the program in tests of the supervisor: started as "stand_in.sh train --job FOLDER", it does what the
# script beside the job's folder says.
cd "$3" && exec sh ../script.sh
