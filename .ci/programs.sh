# Sourced by .ci/run: programs of the tests that pip does not bring. What is missing is taken from Debian's packages without installing them (a
# package of a server would start it); tests/needs.py fails a test that does not find what TESTS_NEED names, and .ci/run says what could not be had.
TESTS_NEED="vllm" SKIPPED=""

# PROGRAM PACKAGE
need() {
    if ! command -v "$1" > /dev/null; then
        (mkdir -p .ci/debian && cd .ci/debian && { apt-get download --quiet=2 "$2" || { apt-get update --quiet=2 && apt-get download --quiet=2 "$2"; }; } \
            && dpkg-deb --extract "$2"_*.deb . && rm -f "$2"_*.deb) || true
        PATH="$PWD/.ci/debian/usr/bin:$PATH"
    fi
    if "$1" --version > /dev/null 2>&1; then
        TESTS_NEED="$TESTS_NEED $1"
    else
        SKIPPED="$SKIPPED $1 (Debian's package $2)"
    fi
}

# Says it where it is seen: at the start and at the end.
say_skipped() {
    if [ -n "$SKIPPED" ]; then
        printf '\n######## SKIPPED: no test used:%s ########\n\n' "$SKIPPED"
    fi
}

need promtool prometheus
need prometheus prometheus
need systemd-analyze systemd
export PATH TESTS_NEED
say_skipped
