#!/usr/bin/env bash
# Installs the tools of the tests besides Python: Node.js with fast-check and two clients of other projects, Redis,
# Chromium, nginx, and ip for networks that can be cut.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
for pair in curl:curl node:nodejs npm:npm chromium:chromium chromedriver:chromium-driver redis-server:redis-server ip:iproute2 nginx:nginx-light; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "The tests need these Debian packages, or their equivalents: ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
npm install --prefix .venv/node --silent --no-audit --no-fund ws@8 eventsource@4 fast-check@4
