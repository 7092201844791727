#!/bin/sh
# Print .env.example with a random value for each secret.
set -eu
cd "$(dirname "$0")"

random() { od -An -N 32 -t x1 /dev/urandom | tr -d ' \n'; }

while IFS= read -r line; do
    case $line in
    RAY_AUTH_TOKEN= | POSTGRES_PASSWORD= | S3_ACCESS_KEY_ID= | S3_SECRET_ACCESS_KEY=) echo "$line$(random)" ;;
    *) printf '%s\n' "$line" ;;
    esac
done <.env.example
