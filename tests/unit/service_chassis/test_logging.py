import json
import subprocess
import sys
import textwrap

SECRET = "patient-canary-4711"


def log_lines(body: str, level: str = "info") -> list[dict]:
    """The JSON lines that a process writes to stderr; the configuration is process-wide."""
    program = textwrap.dedent(
        f"""
        import logging, structlog
        from service_chassis.logging import configure_logging
        configure_logging({level!r}, "coffee")
        log = structlog.get_logger()
        """
    ) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_one_json_line_with_service_level_and_time():
    (line,) = log_lines("log.info('started', port=1)\nlog.debug('hidden')")
    assert line["event"] == "started"
    assert (line["service"], line["level"], line["port"]) == ("coffee", "info", 1)
    assert line["timestamp"].endswith("Z")


def test_control_characters_cannot_make_a_second_line():
    (line,) = log_lines(r"log.info('a', name='x\r\ny\x1b[31m\x00{} %s')")
    assert line["name"] == "x\r\ny\x1b[31m\x00{} %s"


def test_an_exception_is_its_type_and_places_not_its_text():
    (line,) = log_lines(
        f"""
        try:
            raise KeyError({SECRET!r})
        except KeyError:
            log.exception('broken')
        """
    )
    assert line["exception"]["type"] == "KeyError"
    assert line["exception"]["where"] == ["__main__:8"]
    assert SECRET not in json.dumps(line)


def test_an_object_is_its_type_not_its_repr():
    (line,) = log_lines(
        f"""
        class Request:
            def __repr__(self): return {SECRET!r}
        log.info('got', request=Request())
        """
    )
    assert line["request"] == "<Request>"


def test_records_of_other_libraries_keep_their_place_and_lose_their_text():
    lines = log_lines(
        f"""
        logging.getLogger('grpc._x').warning('about %s', {SECRET!r})
        logging.getLogger('grpc._x').info('quiet')
        try:
            raise ValueError({SECRET!r})
        except ValueError:
            logging.getLogger('asyncio').exception({SECRET!r})
        """
    )
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("grpc._x", "warning"),
        ("asyncio", "error"),
    ]
    assert lines[1]["exception"]["type"] == "ValueError"
    assert SECRET not in json.dumps(lines)


def test_crashes_and_warnings_are_json_without_text():
    lines = log_lines(
        f"""
        import threading, warnings
        warnings.warn({SECRET!r})
        def fail(): raise OSError({SECRET!r})
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        raise RuntimeError({SECRET!r})
        """
    )
    assert [line["event"] for line in lines] == [
        "library record",
        "uncaught exception in a thread",
        "uncaught exception",
    ]
    assert SECRET not in json.dumps(lines)
