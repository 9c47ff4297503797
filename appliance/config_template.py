"""The commented configuration file that `appliance init` writes."""

from __future__ import annotations

from appliance.settings import DEFAULT_CHAT, DEFAULT_EMBEDDING

TEMPLATE = """# The appliance's configuration. Every setting is optional; what is commented out shows its default.
# A flag (--set section.key=value) wins over the environment (APPLIANCE_SECTION__KEY), which wins over this file.

[models]
# A model reference: hub:org/name, path:/folder, or pypi:package==version.
# embedding = "{embedding}"      # multilingual-e5-small: Chinese and English

[engines.default]
# kind = "local"                        # local (in this process) | vllm (a server that is started, or at url) | openai (any endpoint)
# base = "{chat}"
# languages = ["en"]                    # what the model can answer in; other languages get verbatim quotes or a refusal
# chat_template = "chatml"              # for a base without one: chatml, alpaca, or a file with a Jinja template
# abstain = false                       # true for models of about 1B parameters and more: they may say "not in the passages"
# max_batch = 8                         # requests generated together
# max_queue = 64                        # waiting requests before "busy"
# weights = "float32"                   # local only: "bfloat16" (newer processors) and "int8" are faster, and take less memory
# merge = false                         # local only: true puts an adapter that is loaded alone into the weights
# prompt_cache_mb = 64                  # local only: memory for how prompts begin; 0: none
# url = "http://127.0.0.1:8000/v1"      # openai, and a vllm server that somebody else starts; several: urls = ["…", "…"]
# model = "name-at-the-endpoint"        # with url: what the server calls the base model
# api_key_env = "MODEL_API_KEY"         # with url: the environment variable that holds the key
# python = "/path/to/bin/python"        # vllm only: its environment, by default that of `make vllm`
# server_args = []                      # vllm only: more of its own arguments
# kv_cache_gib = 2                      # vllm on a CPU: memory for keys and values
# connect_seconds = 1.5                 # to accept a connection, and to say that it is well
# first_token_seconds = 120
# between_tokens_seconds = 30
# total_seconds = 600                   # one whole answer
# breaker_failures = 3                  # in a row, and the engine is left alone
# breaker_seconds = 5                   # for this long

# [domains.medical]
# engine = "default"
# scenario = "hybrid"                   # written by: appliance advise --domain medical --save
# sources = ["/srv/handbook"]           # what `appliance worker` (started by `appliance serve`) brings in,
# refresh = "0 3 * * *"                 # at these times: one cron line in local time
# prune = false                         # true: remove documents that are gone from the sources
# labels = []                           # only callers who hold all of these see the documents
# retrain = "0 2 * * 0"                 # train anew at these times, from the newest state of
# retrain_dataset = "ward-pairs"        # or retrain_config = "retrain.toml"; nothing is trained if nothing has changed
# retrain_then = "canary"               # after the gate: "canary", "promote" or "register"
# retrain_report = "reports/medical.jsonl"  # a line of JSON each time

# [domains.medical.canary]              # a version on trial: appliance adapter canary start
# share = 0.1                           # of the questions
# min_answers = 20                      # from so many answers on it is rolled back if more than
# max_errors = 0.2                      # fail, or more than of the live version
# min_feedback = 10                     # the same with ratings down
# max_bad = 0.5
# significance = 0.05                   # over all looks at the figures
# promote_after_answers = 500           # goes live by itself, if it passed the gate; default: never
# promote_after_hours = 24

# [domains.medical.gate]                # what an adapter version must show before `appliance adapter promote` makes it live
# dataset = "medical-exam"              # default: the questions of its own data set that it was not trained on
# arms = ["finetuned"]                  # add "hybrid" to compare answers from passages too
# metric = "token_f1"                   # default: by the data set's task
# max_drop = 0.02                       # the answers must be shown not to be worse than this
# min_gain = 0.0                        # above 0: they must be shown to be better by this
# strict = false                        # true: too few questions to show it is a failure; false: the mean decides
# general = "everyday"                  # a data set of general questions, against forgetting
# max_forgetting = 0.05
# max_answered = 0.05                   # rise of the share of unanswerable questions that get an answer
# max_declined = 0.05                   # rise of the share of other questions that get none
# max_latency = 2.0                     # times the first token may take, and tokens may be slower
# questions = 100                       # of each set at most

[retrieval]
# k = 5                                 # passages that reach an answer
# candidates = 100                      # hits per retriever before fusion; `appliance index tune` chooses how they are fused
# reranker = "hub:BAAI/bge-reranker-v2-m3"  # a cross-encoder (hub:, path: or pypi:) that orders the best passages anew
# rerank = 20                           # how many of them
# chunk_tokens = 200
# chunk_max_tokens = 320
# flagged = "exclude"                   # passages with instructions to the model: kept out of prompts; "keep" lets them in
# keep_generations = 10                 # states of the index that one can roll back to, the live one among them; at least 2

[ingest]
# parse_seconds = 60                    # from one document, page or sheet to the next
# parse_memory_mb = 1024                # of the process that parses
# ocr = false                           # true: read scanned pages with Tesseract (pip install "appliance[ocr]")
# ocr_languages = "chi_sim+eng"
# archives = false                      # true: read zip and tar files like folders, as --archives does

[answering]
# max_tokens = 128
# max_question_chars = 8000
# passage_tokens = 500                  # budget for passages in a prompt
# cache_mb = 32                         # memory of `serve` for generated answers; 0: none
# support = 0.7                         # share of a sentence a passage must support to be cited

[router]
# token_price = 0.02                    # what 1,000 expected tokens of an arm take off its utility, in a trained router
# second_price = 0.0                    # what each expected second takes off it
# target_risk = 0.1                     # share of a trained router's answers that may be wrong; default: none is set

[router.thresholds]
# Names and defaults: appliance router show
# reading = 0.7                         # how well the model answers from passages; 1.0 for about 7B parameters and more

[server]
# host = "127.0.0.1"
# port = 8080
# max_body_bytes = 1048576
# require_keys = true                   # default: true unless host is a loopback address
# admin_port = 8081                     # /v1/admin and /metrics are served here and not on the public port
# admin_host = "127.0.0.1"
# max_upload_bytes = 268435456          # of one file sent to /v1/admin/uploads

[gateway]
# max_running = 64                      # answers generated at once, searches at once, embeddings at once
# max_queued = 128                      # waiting ones of each; more get 503 with Retry-After
# queue_seconds = 30                    # as do those that have waited so long
# drain_seconds = 0                     # after SIGTERM: still serving, but not ready, so that a load balancer turns away first
# grace_seconds = 30                    # then: for open streams to end
# max_embedding_inputs = 256            # texts in one call of /v1/embeddings

[feedback]
# retain_hours = 0                      # how long questions and answers are kept for feedback that does not repeat them; 0: not at all
# accept_days = 7                       # how long after an answer feedback is taken

[eval.utility]                          # what answers are worth, from -1 to 1
# refuse_answerable = 0.0
# wrong_below = 0.2                     # an answer that scores less than this counts as wrong
# wrong = -0.5
# refuse_unanswerable = 1.0
# answer_unanswerable = -0.5
# long_words = 30                       # longer gold answers are scored by ROUGE-L, others by token F1

# [eval.metrics]                        # for data sets whose rows have no column `metric`
# reports = "numeric_match"             # or token_f1, rougeL, exact_match, choice, accuracy, item_f1

# [eval.prices.default]                 # of an engine; [eval.prices.appliance] is for what no engine generates
# read_1k = 0.0                         # 1,000 tokens read
# generated_1k = 0.0
# hour = 0.0                            # of the machine

[database]
# url = "postgresql+pg8000://USER:PASSWORD@HOST:5432/DATABASE"  # with pgvector; default: appliance.db and index/ in this folder
"""


def template() -> str:
    """The commented file that `appliance init` writes."""
    return TEMPLATE.format(embedding=DEFAULT_EMBEDDING, chat=DEFAULT_CHAT)
