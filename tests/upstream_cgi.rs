//! The script host, driven directly: what scripts answer, how they take their input, how they end, and what bounds them.
#![cfg(feature = "upstream-cgi")]

#[path = "support/site.rs"]
mod site;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::poll;
use gatespan::Application;
use gatespan::application::driver::call;
use gatespan::application::{Errors, InputError, LocalRedirects, Log};
use gatespan::middleware::Mount;
use gatespan::upstream::cgi::{Report, RequestBody};
use site::{Site, ask, get, gone, is_alive, logged, next, post, post_slowly, read, refused, request, soon};

const MIB: usize = 1 << 20;

// Answers: RFC 3875 6.2.

#[tokio::test]
async fn a_document_is_passed_on_with_its_status_reason_and_fields() {
    let site = Site::of(
        "printf 'Status: 418 Short and stout\\nX-B: 1\\nx-a: 2\\nX-B: 3\\nContent-Type: text/x-tea\\n\\nhello'",
    );
    let answer = ask(site.host(|_| {}), get("/script")).await;
    assert_eq!((answer.status, answer.reason.as_str()), (418, "Short and stout"));
    let fields: Vec<_> = answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(fields, [("X-B", "1"), ("x-a", "2"), ("X-B", "3"), ("Content-Type", "text/x-tea")]);
    assert_eq!((answer.body.as_str(), answer.cut), ("hello", None));
}

#[tokio::test]
async fn a_head_may_have_bare_line_feeds_or_none_and_be_cut_anywhere() {
    let site = Site::of(
        "printf 'Content-Type: te'; sleep 0.05; printf 'xt/plain\\r\\nX: y\\r'; sleep 0.05; printf '\\n\\r\\nbody'",
    );
    let answer = ask(site.host(|_| {}), get("/script")).await;
    assert_eq!((answer.status, answer.header("X"), answer.body.as_str()), (200, Some("y"), "body"));
}

#[tokio::test]
async fn a_client_redirect_gets_its_302() {
    let site = Site::new();
    site.shell("plain", "printf 'Location: https://example.org/a\\n\\n'");
    site.shell(
        "document",
        "printf 'Status: 307 Elsewhere\\nLocation: https://example.org/b\\nContent-Type: text/plain\\n\\nthere'",
    );
    let host = site.host(|_| {});
    let answer = ask(host.clone(), get("/plain")).await;
    assert_eq!(
        (answer.status, answer.header("Location"), answer.body.as_str()),
        (302, Some("https://example.org/a"), "")
    );
    let answer = ask(host, get("/document")).await;
    assert_eq!((answer.status, answer.reason.as_str(), answer.body.as_str()), (307, "Elsewhere", "there"));
}

#[tokio::test]
async fn a_local_redirect_is_reported_to_the_middleware_and_else_sent_to_the_client() {
    let site = Site::of("printf 'Location: /else/where?a=b\\n\\n'; echo $$ >$MARKS/pid");
    let host = site.host(|_| {});
    let answer = ask(host.clone(), get("/script")).await;
    assert_eq!((answer.status, answer.header("Location")), (302, Some("/else/where?a=b")));
    let redirects = LocalRedirects::new();
    let mut environ = get("/script");
    environ.set_local_redirects(Some(redirects.clone()));
    let answer = ask(host, environ).await;
    assert_eq!(redirects.take().unwrap(), "/else/where?a=b");
    assert_eq!(answer.body, "");
    gone(&site.mark("pid").await).await;
}

#[tokio::test]
async fn an_nph_answer_is_taken_apart_and_its_interim_answers_do_not_leak() {
    let site = Site::new();
    site.shell(
        "nph-script",
        "printf 'HTTP/1.1 103 Early Hints\\r\\nLink: </a>\\r\\n\\r\\nHTTP/1.1 404 Gone fishing\\r\\nConnection: close\\r\\nX: 1\\r\\n\\r\\nbody'",
    );
    let answer = ask(site.host(|_| {}), get("/nph-script")).await;
    assert_eq!((answer.status, answer.reason.as_str(), answer.body.as_str()), (404, "Gone fishing", "body"));
    assert_eq!((answer.header("X"), answer.header("Link"), answer.header("Connection")), (Some("1"), None, None));
    let answer = ask(site.host(|config| config.nph = false), get("/nph-script")).await;
    assert_eq!(answer.status, 502);
}

#[tokio::test]
async fn cve_2023_38709_a_transfer_encoding_of_its_own_is_refused() {
    let site = Site::of("printf 'Content-Type: text/plain\\nTransfer-Encoding: chunked\\n\\n0\\r\\n\\r\\n'");
    let log = logged();
    let answer = ask(site.host(|_| {}), get("/script")).await;
    assert_eq!((answer.status, answer.header("Transfer-Encoding")), (502, None));
    assert_eq!(log.with("expected no Transfer-Encoding").len(), 1, "{:?}", log.lines());
}

#[tokio::test]
async fn what_a_web_server_is_to_serve_is_passed_on() {
    let site = Site::of("printf 'X-Accel-Redirect: /files/a\\nX-Sendfile: /srv/a\\n\\n'");
    let answer = ask(site.host(|_| {}), get("/script")).await;
    assert_eq!((answer.header("X-Accel-Redirect"), answer.header("X-Sendfile")), (Some("/files/a"), Some("/srv/a")));
}

#[tokio::test]
async fn a_missing_type_is_text_and_never_guessed() {
    let site = Site::of("printf 'X: 1\\n\\n<script>'");
    assert_eq!(ask(site.host(|_| {}), get("/script")).await.header("Content-Type"), Some("text/plain"));
}

#[tokio::test]
async fn an_answer_without_a_body_has_none_and_its_script_finishes() {
    let site = Site::new();
    site.shell("head", "printf 'Content-Type: text/plain\\nContent-Length: 100000\\n\\n'; head -c 100000 /dev/zero; echo $? >$MARKS/head");
    site.shell("none", "printf 'Status: 204\\n\\n'; cat >/dev/null; echo all of it >$MARKS/none");
    let host = site.host(|_| {});
    let answer = ask(host.clone(), request("HEAD", "/head")).await;
    assert_eq!((answer.status, answer.header("Content-Length"), answer.body.as_str()), (200, Some("100000"), ""));
    assert_eq!(site.mark("head").await, "0");
    let answer = ask(host, post("/none", vec![b'x'; MIB])).await;
    assert_eq!((answer.status, answer.body.as_str(), answer.cut), (204, "", None));
    assert_eq!(site.mark("none").await, "all of it");
}

// Input.

const COUNT: &str =
    "printf 'Content-Type: text/plain\\n\\nLENGTH=%s\\n' \"${CONTENT_LENGTH-unset}\"; printf 'READ=%s\\n' $(wc -c)";

#[tokio::test]
async fn a_body_with_a_length_is_streamed_whatever_its_size() {
    let site = Site::of(COUNT);
    let host = site.host(|_| {});
    for len in [1, 4096, 4097, 100_000, 5 * MIB] {
        let answer = ask(host.clone(), post("/script", vec![b'x'; len])).await;
        let len = len.to_string();
        assert_eq!((answer.line("LENGTH"), answer.line("READ")), (Some(&*len), Some(&*len)));
    }
    let answer = ask(host, get("/script")).await;
    assert_eq!((answer.line("LENGTH"), answer.line("READ")), (Some("unset"), Some("0")));
}

#[tokio::test]
async fn a_body_without_a_length_is_spooled_and_gets_one() {
    let site = Site::of(COUNT);
    let host = site.host(|config| (config.spool_memory, config.spool_limit) = (10_000, 300_000));
    for (len, files) in [(0, 0), (10, 0), (10_000, 0), (10_001, 1), (300_000, 1)] {
        let (environ, sender) = post_slowly("/script", None);
        let asking = tokio::spawn(ask(host.clone(), environ));
        for piece in vec![b'x'; len].chunks(1000) {
            sender.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        drop(sender);
        let answer = soon(asking).await.unwrap();
        let len = len.to_string();
        assert_eq!((answer.line("LENGTH"), answer.line("READ")), (Some(&*len), Some(&*len)), "{answer:?}");
        assert_eq!(site.spooled_files(), 0, "{files} had no name");
    }
}

#[tokio::test]
async fn a_spooled_body_over_the_limit_is_413_and_one_line() {
    let site = Site::of(COUNT);
    let log = logged();
    let host = site.host(|config| (config.spool_memory, config.spool_limit) = (1000, 5000));
    let (environ, sender) = post_slowly("/script", None);
    let sending = tokio::spawn(async move { while sender.send(Ok(Bytes::from_static(&[b'x'; 500]))).await.is_ok() {} });
    assert_eq!(ask(host, environ).await.status, 413);
    soon(sending).await.unwrap();
    assert_eq!((log.lines().len(), site.spooled_files()), (1, 0), "{:?}", log.lines());
}

#[tokio::test]
async fn a_body_without_a_length_can_be_streamed_without_one() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n%s;' \"${CONTENT_LENGTH-unset}\"; cat");
    let host = site.host(|config| config.request_body = RequestBody::Stream);
    let (environ, sender) = post_slowly("/script", None);
    sender.send(Ok("one ".into())).await.unwrap();
    let mut response = soon(call(host, environ)).await.unwrap();
    let mut seen = next(&mut response).await;
    while !seen.ends_with("one ") {
        seen.push_str(&next(&mut response).await);
    }
    sender.send(Ok("two".into())).await.unwrap();
    drop(sender);
    assert_eq!(read(response).await.body, "two");
    assert_eq!(seen, "unset;one ");
}

#[tokio::test]
async fn both_directions_stream_at_once() {
    let site = Site::of("printf 'Content-Type: application/octet-stream\\n\\n'; exec cat");
    let host = site.host(|_| {});
    let len = 20 * MIB;
    let (environ, sender) = post_slowly("/script", Some(len as u64));
    let sending = tokio::spawn(async move {
        for _ in 0..len / MIB {
            sender.send(Ok(vec![b'x'; MIB].into())).await.unwrap();
        }
    });
    let answer = ask(host, environ).await;
    soon(sending).await.unwrap();
    assert_eq!((answer.body.len(), answer.cut), (len, None));
}

#[tokio::test]
async fn a_script_that_reads_all_before_it_writes_is_fed_while_its_head_is_waited_for() {
    let site = Site::of("cat >$MARKS/body; printf 'Content-Type: text/plain\\n\\n'; wc -c <$MARKS/body");
    let answer = ask(site.host(|_| {}), post("/script", vec![b'x'; 3 * MIB])).await;
    assert_eq!(answer.body.trim(), (3 * MIB).to_string());
}

#[tokio::test]
async fn a_script_that_leaves_its_input_unread_is_answered() {
    let site = Site::of("exec <&-; printf 'Content-Type: text/plain\\n\\nnot interested'; sleep 0.1");
    let answer = ask(site.host(|_| {}), post("/script", vec![b'x'; 5 * MIB])).await;
    assert_eq!((answer.status, answer.body.as_str(), answer.cut), (200, "not interested", None));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_of_the_client_and_ends_the_script() {
    let site = Site::of("echo $$ >$MARKS/pid; cat >/dev/null; sleep 60");
    let (environ, sender) = post_slowly("/script", Some(1000));
    sender.send(Ok("some".into())).await.unwrap();
    let host = site.host(|_| {});
    let asking = tokio::spawn(refused(host, environ));
    let pid = site.mark("pid").await;
    drop(sender);
    assert_eq!(soon(asking).await.unwrap().status(), 400);
    gone(&pid).await;
}

// Output as it comes.

#[tokio::test]
async fn an_event_stream_arrives_event_by_event() {
    let site = Site::of(
        "printf 'Content-Type: text/event-stream\\n\\n'; for i in 1 2 3; do read go <$MARKS/go; echo $i; done",
    );
    let mut go = site.fifo("go");
    // The head comes although there is no event yet.
    let mut response = soon(call(site.host(|_| {}), get("/script"))).await.unwrap();
    assert_eq!(response.head.headers.get("Content-Type"), Some(&b"text/event-stream"[..]));
    for event in ["1\n", "2\n", "3\n"] {
        writeln!(go, "go").unwrap();
        assert_eq!(next(&mut response).await, event);
    }
    assert_eq!(read(response).await.body, "");
}

// Ends.

#[tokio::test]
async fn a_script_killed_by_a_signal_is_cut_and_before_its_head_502() {
    let site = Site::new();
    site.shell("body", "printf 'Content-Type: text/plain\\n\\nsome'; kill -SEGV $$");
    site.shell("head", "printf 'Content-Type: text/plain\\n'; kill -KILL $$");
    let host = site.host(|_| {});
    let log = logged();
    let answer = ask(host.clone(), get("/body")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "some"));
    let cut = answer.cut.unwrap();
    assert!(cut.contains("SEGV"), "{cut}");
    assert_eq!(log.lines().len(), 0, "the gateway logs it: {:?}", log.lines());
    let answer = ask(host, get("/head")).await;
    assert_eq!((answer.status, answer.cut), (502, None));
    assert_eq!((log.lines().len(), log.with("(KILL)").len()), (1, 1), "{:?}", log.lines());
}

#[tokio::test]
async fn whoever_sent_a_request_can_learn_what_became_of_its_script() {
    let site = Site::new();
    site.shell("exits", "printf 'X: 1\\n\\nbody'; exit 3");
    site.shell("dies", "printf 'X: 1\\n\\nbody'; exec >&-; kill -KILL $$");
    site.shell("fails", "exit 4");
    let host = site.host(|_| {});
    for (path, code, signal, failure) in [
        ("/exits", Some(3), None, None),
        ("/dies", None, Some(9), None),
        ("/fails", Some(4), None, Some("and then the script ended with exit code 4")),
        ("/missing", None, None, Some("expected a script, found none")),
    ] {
        let report = Report::new();
        let mut environ = get(path);
        environ.extensions_mut().insert(report.clone());
        assert_eq!(ask(host.clone(), environ).await.body == "body", failure.is_none(), "{path}");
        host.idle().await;
        assert_eq!(
            (report.exit_code(), report.signal(), report.has_failed()),
            (code, signal, failure.is_some()),
            "{path}"
        );
        let cause = report.take_failure().map(|failure| failure.cause()).unwrap_or_default();
        assert!(cause.contains(failure.unwrap_or_default()), "{path}: {cause}");
    }
}

#[tokio::test]
async fn fewer_bytes_than_announced_are_cut_and_more_are_cut_off_and_logged() {
    let site = Site::new();
    site.shell("fewer", "printf 'Content-Type: text/plain\\nContent-Length: 10\\n\\nsome'");
    site.shell("more", "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\nsome and more'");
    site.shell("later", "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\nsome'; sleep 0.1; echo more");
    let host = site.host(|_| {});
    let answer = ask(host.clone(), get("/fewer")).await;
    assert_eq!(answer.body, "some");
    let cut = answer.cut.unwrap();
    assert!(cut.contains("10") && cut.contains('4'), "{cut}");
    for name in ["/more", "/later"] {
        let log = logged();
        let answer = ask(host.clone(), get(name)).await;
        assert_eq!((answer.body.as_str(), answer.cut), ("some", None));
        log.wait_for("wrote more than its Content-Length").await;
        soon(host.idle()).await;
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    }
}

#[tokio::test]
async fn an_exit_code_alone_passes_and_is_logged() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\nall'; exit 3");
    let log = logged();
    let answer = ask(site.host(|_| {}), get("/script")).await;
    assert_eq!((answer.status, answer.body.as_str(), answer.cut), (200, "all", None));
    assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    assert!(log.lines()[0].contains('3'), "{:?}", log.lines());
}

#[tokio::test]
async fn a_script_that_closes_its_output_and_works_on_has_answered_and_keeps_its_place() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\nall'; exec >&- 2>&-; sleep 1; echo done >$MARKS/done");
    let host = site.host(|_| {});
    let begun = Instant::now();
    let answer = ask(host.clone(), get("/script")).await;
    assert_eq!((answer.body.as_str(), answer.cut), ("all", None));
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(host.running(), 1);
    soon(host.idle()).await;
    assert!(site.has_mark("done"));
}

#[tokio::test]
async fn a_script_that_works_on_for_too_long_is_ended() {
    let site = Site::of("echo $$ >$MARKS/pid; printf 'Content-Type: text/plain\\n\\nall'; exec >&- 2>&-; sleep 60");
    let host = site.host(|config| config.linger = Duration::from_millis(100));
    assert_eq!(ask(host.clone(), get("/script")).await.body, "all");
    soon(host.idle()).await;
    gone(&site.mark("pid").await).await;
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_output_open_does_not_hold_the_response() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\nall'; sleep 30 & echo $! >$MARKS/pid");
    let host = site.host(|_| {});
    let answer = ask(host.clone(), get("/script")).await;
    assert_eq!((answer.body.as_str(), answer.cut), ("all", None));
    soon(host.idle()).await;
    // After a normal end the group is left alone, unless told otherwise.
    let pid = site.mark("pid").await;
    assert!(is_alive(&pid));
    std::process::Command::new("kill").arg(&pid).status().unwrap();
    std::fs::remove_file(site.path("marks/pid")).unwrap();
    let host = site.host(|config| config.kill_leftovers = true);
    assert_eq!(ask(host, get("/script")).await.body, "all");
    let pid = site.mark("pid").await;
    soon(async {
        while is_alive(&pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_grandchild_still_writes_within_the_grace_time_is_part_of_the_answer() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\none '; (sleep 0.2; echo two; exec sleep 30 >&- 2>&-) &");
    let host = site.host(|config| config.leftover_grace = Duration::from_secs(10));
    assert_eq!(ask(host, get("/script")).await.body, "one two\n");
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_a_script_that_has_long_exited() {
    let site =
        Site::of("printf 'Content-Type: text/plain\\n\\n'; sleep 0.1; yes | head -c 60000; echo done >$MARKS/done");
    let host = site.host(|config| {
        (config.leftover_grace, config.read_timeout) = (Duration::ZERO, Duration::from_millis(150));
    });
    let response = soon(call(host, get("/script"))).await.unwrap();
    site.mark("done").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = read(response).await;
    assert_eq!((answer.body.len(), answer.cut), (60_000, None));
}

#[tokio::test]
async fn a_grandchild_that_holds_standard_error_holds_nothing_else() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\nall'; sleep 30 >&- <&- & echo $! >$MARKS/pid");
    let host = site.host(|_| {});
    assert_eq!(ask(host.clone(), get("/script")).await.body, "all");
    soon(host.idle()).await;
    std::process::Command::new("kill").arg(site.mark("pid").await).status().unwrap();
}

// Heads that are none: each a status and one line.

#[tokio::test]
async fn a_head_that_is_none_is_502_and_one_line_that_shows_it() {
    for (text, shown) in [
        ("echo hello", "hello"),
        ("printf 'A: b'", "A: b"),
        ("exit 7", "7"),
        ("printf '\\n\\n'", "at least one header field"),
        ("head -c 100000 /dev/zero | tr '\\0' a", "65536"),
        ("printf 'Status: 99\\n\\n'", "99"),
        ("printf 'Status: 101\\nX: y\\n\\n'", "101"),
        ("printf 'X: a\\rb\\n\\n'", "a\\\\rb"),
    ] {
        let site = Site::of(text);
        let log = logged();
        let answer = ask(site.host(|_| {}), get("/script")).await;
        assert!(answer.status == 502 && answer.cut.is_none(), "{text}: {answer:?}");
        let lines = log.lines();
        assert!(lines.len() == 1 && lines[0].contains(shown), "{text}: {lines:?}");
        for field in ["ERROR request failed", "request_id=", "script=", "status=502", "cause=", "mend="] {
            assert!(lines[0].contains(field), "{field}: {lines:?}");
        }
    }
}

#[tokio::test]
async fn the_page_says_why_only_where_it_may_and_never_as_markup() {
    let site = Site::of("echo '<b>hello</b>'");
    let mut environ = get("/script");
    environ.set("HTTP_X_REQUEST_ID", "abc").unwrap();
    let answer = ask(site.host(|_| {}), environ.without_input()).await;
    assert_eq!(answer.body, "502 Bad Gateway\nrequest abc\n");
    let answer = ask(site.host(|config| config.debug = true), environ).await;
    assert!(answer.header("Content-Type").unwrap().starts_with("text/html"));
    assert!(answer.body.contains("&lt;b&gt;hello") && !answer.body.contains("<b>"), "{}", answer.body);
    assert!(answer.body.contains("request abc"));
}

// Limits.

#[tokio::test]
async fn a_head_that_does_not_come_in_time_is_504_and_the_script_ends() {
    let site = Site::of("echo $$ >$MARKS/pid; printf 'Content-'; sleep 60");
    let log = logged();
    let host = site.host(|config| config.head_timeout = Duration::from_millis(200));
    let answer = ask(host.clone(), get("/script")).await;
    assert_eq!(answer.status, 504);
    assert_eq!((log.lines().len(), log.with("Content-").len()), (1, 1), "{:?}", log.lines());
    gone(&site.mark("pid").await).await;
    soon(host.idle()).await;
}

#[tokio::test]
async fn a_pause_within_the_body_that_is_too_long_cuts_it() {
    let site = Site::of("echo $$ >$MARKS/pid; printf 'Content-Type: text/plain\\n\\nsome'; sleep 60");
    let host = site.host(|config| config.read_timeout = Duration::from_millis(200));
    let answer = ask(host, get("/script")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "some"));
    assert!(answer.cut.is_some());
    gone(&site.mark("pid").await).await;
}

/// nginx sends no more of a body once the answer has begun, so that it is received first.
#[tokio::test]
async fn the_time_limit_and_the_client_count_too_while_an_upload_is_received_before_the_answer() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n'; cat");
    let host = site.host(|config| config.timeout = Some(Duration::from_millis(400)));
    let stalled = || {
        let (mut environ, sender) = post_slowly("/script", Some(10_000));
        environ.set("SERVER_SOFTWARE", "nginx/1.22.1").unwrap();
        let mut server = environ.server().clone();
        server.gateway = "fastcgi";
        (environ.with_server(Arc::new(server)), sender)
    };
    let (environ, sender) = stalled();
    sender.send(Ok(Bytes::from_static(b"the beginning"))).await.unwrap();
    assert_eq!(soon(ask(host, environ)).await.status, 504);
    drop(sender);

    let host = site.host(|_| {});
    let (environ, _sender) = stalled();
    let (environ, cancellation) = environ.with_own_cancellation();
    let asking = tokio::spawn(call(host.clone(), environ));
    while host.running() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cancellation.cancel();
    assert_eq!(soon(asking).await.unwrap().unwrap_err().status(), 503);
    soon(host.idle()).await;
}

#[tokio::test]
async fn a_script_that_takes_too_long_in_all_is_504_or_cut() {
    let site = Site::new();
    site.shell("head", "while :; do sleep 0.05; printf 'X: y\\n'; done");
    site.shell("body", "printf 'Content-Type: text/plain\\n\\n'; while :; do sleep 0.05; echo more; done");
    let host = site.host(|config| config.timeout = Some(Duration::from_millis(400)));
    assert_eq!(ask(host.clone(), get("/head")).await.status, 504);
    assert!(ask(host.clone(), get("/body")).await.cut.is_some());
    soon(host.idle()).await;
}

#[tokio::test]
async fn a_time_limit_may_be_for_ever() {
    let site = Site::new();
    site.shell("closed", "printf 'Content-Type: text/plain\\n\\nall'; exec >&- 2>&-; sleep 0.3");
    site.shell("left", "sleep 30 & echo $! >$MARKS/left; printf 'Content-Type: text/plain\\n\\nsome'; sleep 30");
    let host = site.host(|config| {
        config.timeout = Some(Duration::MAX);
        for time in [&mut config.head_timeout, &mut config.read_timeout, &mut config.linger, &mut config.leftover_grace]
        {
            *time = Duration::MAX;
        }
        (config.kill_grace, config.queue_wait, config.concurrent) = (Duration::MAX, Duration::MAX, 1);
    });
    let (first, second) = tokio::join!(ask(host.clone(), get("/closed")), ask(host.clone(), get("/closed")));
    assert_eq!((first.body.as_str(), second.body.as_str()), ("all", "all"));
    let mut response = soon(call(host.clone(), get("/left"))).await.unwrap();
    assert_eq!(next(&mut response).await, "some");
    drop(response);
    soon(host.idle()).await;
    gone(&site.mark("left").await).await;
}

#[tokio::test]
async fn the_time_that_the_client_takes_is_not_the_scripts() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n'; exec cat");
    let limit = Duration::from_millis(300);
    let host = site.host(|config| (config.head_timeout, config.read_timeout) = (limit, limit));
    // Sending slowly.
    let (environ, sender) = post_slowly("/script", Some(8));
    let asking = tokio::spawn(ask(host.clone(), environ));
    for _ in 0..4 {
        tokio::time::sleep(limit).await;
        sender.send(Ok("ab".into())).await.unwrap();
    }
    assert_eq!(soon(asking).await.unwrap().body, "abababab");
    // Reading slowly.
    let mut response = soon(call(host, post("/script", vec![b'x'; MIB]))).await.unwrap();
    let mut len = 0;
    for _ in 0..4 {
        len += next(&mut response).await.len();
        tokio::time::sleep(limit).await;
    }
    let answer = read(response).await;
    assert_eq!((len + answer.body.len(), answer.cut), (MIB, None));
}

#[tokio::test]
async fn only_so_many_run_at_once_and_past_the_queue_is_503() {
    let site =
        Site::of("echo $$ >$MARKS/$QUERY_STRING; read go <$MARKS/go; printf 'Content-Type: text/plain\\n\\nran'");
    let mut go = site.fifo("go");
    let host = site.host(|config| (config.concurrent, config.queue) = (1, 1));
    let first = tokio::spawn(ask(host.clone(), get("/script?one")));
    site.mark("one").await;
    let mut second = Box::pin(call(host.clone(), get("/script?two")));
    assert!(poll!(&mut second).is_pending());
    let log = logged();
    let answer = ask(host.clone(), get("/script?three")).await;
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("10")));
    assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    assert!(!site.has_mark("two"));
    write!(go, "go\ngo\n").unwrap();
    assert_eq!(soon(first).await.unwrap().body, "ran");
    assert_eq!(read(soon(second).await.unwrap()).await.body, "ran");
}

#[tokio::test]
async fn the_wait_in_the_queue_is_bounded() {
    let site = Site::of("echo $$ >$MARKS/pid; exec sleep 60");
    let host =
        site.host(|config| (config.concurrent_per_script, config.queue_wait) = (Some(1), Duration::from_millis(50)));
    let first = tokio::spawn(call(host.clone(), get("/script")));
    let pid = site.mark("pid").await;
    let answer = ask(host.clone(), get("/script")).await;
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")));
    first.abort();
    gone(&pid).await;
    soon(host.idle()).await;
}

// Giving up.

#[tokio::test]
async fn who_leaves_ends_the_group_politely_and_then_not() {
    let site = Site::new();
    site.shell("polite", "trap 'echo told >$MARKS/told; exit' TERM; echo $$ >$MARKS/pid; printf 'A: b\\n\\nc'; while :; do sleep 0.01; done");
    site.shell(
        "deaf",
        "trap '' TERM; sleep 61 & echo $! >$MARKS/child; echo $$ >$MARKS/deaf; while :; do sleep 0.01; done",
    );
    let host = site.host(|config| config.kill_grace = Duration::from_secs(1));
    let mut response = soon(call(host.clone(), get("/polite"))).await.unwrap();
    assert_eq!(next(&mut response).await, "c");
    let pid = site.mark("pid").await;
    drop(response);
    assert_eq!(site.mark("told").await, "told");
    gone(&pid).await;
    soon(host.idle()).await;
    // Before the head; and the place is free only when all is over.
    let asking = tokio::spawn(call(host.clone(), get("/deaf")));
    let (pid, child) = (site.mark("deaf").await, site.mark("child").await);
    let begun = Instant::now();
    asking.abort();
    let _ = asking.await;
    assert_eq!(host.running(), 1);
    soon(host.idle()).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    gone(&pid).await;
    soon(async {
        while is_alive(&child) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_leaves_while_the_script_is_started_keeps_its_place_until_all_is_over() {
    let site = Site::of(
        "trap 'echo told; sleep 0.3; echo slept >$MARKS/slept; exit' TERM; echo $$ >$MARKS/pid; while :; do sleep 0.01; done",
    );
    let host = site.host(|_| {});
    let mut asking = Box::pin(call(host.clone(), get("/script")));
    assert!(poll!(&mut asking).is_pending());
    // Nothing else of this thread's goes on meanwhile, so that it is not known here that the script was started.
    let begun = Instant::now();
    while !site.has_mark("pid") {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(2));
    }
    let begun = Instant::now();
    drop(asking);
    assert_eq!(host.running(), 1);
    soon(host.idle()).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(site.has_mark("slept"));
    let pid = site.mark("pid").await;
    assert!(!is_alive(&pid));
}

#[tokio::test]
async fn a_cancelled_request_ends_its_script_although_its_response_is_held() {
    let site = Site::of("echo $$ >$MARKS/pid; printf 'Content-Type: text/plain\\n\\nsome'; exec sleep 60");
    let (environ, cancellation) = get("/script").with_own_cancellation();
    let mut response = soon(call(site.host(|_| {}), environ)).await.unwrap();
    assert_eq!(next(&mut response).await, "some");
    let pid = site.mark("pid").await;
    cancellation.cancel();
    let answer = read(response).await;
    assert!(answer.cut.is_some());
    gone(&pid).await;
}

#[tokio::test]
async fn who_leaves_the_queue_was_never_there() {
    let site = Site::of("echo $$ >$MARKS/pid; exec sleep 60");
    let host = site.host(|config| (config.concurrent, config.queue) = (1, 1));
    let first = tokio::spawn(call(host.clone(), get("/script")));
    site.mark("pid").await;
    for _ in 0..3 {
        let mut waiting = Box::pin(call(host.clone(), get("/script")));
        assert!(poll!(&mut waiting).is_pending());
    }
    first.abort();
    soon(host.idle()).await;
}

// Standard error.

#[tokio::test]
async fn standard_error_is_logged_line_by_line_with_request_and_script() {
    let site =
        Site::of("printf 'one\\ntw' >&2; printf 'Content-Type: text/plain\\n\\n'; printf 'o\\033[31m' >&2; echo all");
    let log = logged();
    let mut environ = get("/script");
    environ.set("HTTP_X_REQUEST_ID", "abc").unwrap();
    assert_eq!(ask(site.host(|_| {}), environ).await.body, "all\n");
    log.wait_for("two").await;
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("WARN one ") && lines[1].starts_with("WARN two\\u{1b}[31m "), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("request_id=\"abc\"") && line.contains("script=")), "{lines:?}");
}

#[tokio::test]
async fn standard_error_is_bounded_and_never_blocks_the_script() {
    let site = Site::of(
        "head -c 1000000 /dev/zero | tr '\\0' a >&2; echo >&2; yes | head -c 1000000 >&2; printf 'Content-Type: text/plain\\n\\nall'",
    );
    let log = logged();
    assert_eq!(ask(site.host(|_| {}), get("/script")).await.body, "all");
    let dropped = log.wait_for("more lines of its standard error").await;
    let lines = log.lines();
    assert!(lines.len() < 1000 && lines.iter().all(|line| line.len() < 5000), "{} {dropped}", lines.len());
    assert!(lines[0].contains("aaa…"), "{}", lines[0]);
}

#[tokio::test]
async fn standard_error_goes_to_the_web_server_too_where_told() {
    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);
    impl Log for Kept {
        fn write(&self, text: &[u8]) {
            self.0.lock().unwrap().push(String::from_utf8_lossy(text).into_owned());
        }
    }
    let site = Site::of("printf 'be\\ncareful\\n' >&2; printf 'Content-Type: text/plain\\n\\nall'");
    // In whole lines, since web servers make a line of each piece.
    for (told, expected) in [(false, &[][..]), (true, &["be\n", "careful\n"])] {
        let kept = Arc::new(Kept::default());
        let host = site.host(|config| config.stderr_to_web_server = told);
        ask(host.clone(), get("/script").with_errors(Errors::new(kept.clone()))).await;
        soon(host.idle()).await;
        assert_eq!(*kept.0.lock().unwrap(), expected);
    }
}

// An application like any other.

#[tokio::test]
async fn a_host_can_be_mounted() {
    let site = Site::of(
        "printf 'Content-Type: text/plain\\n\\nSCRIPT_NAME=%s\\nPATH_INFO=%s\\n' \"$SCRIPT_NAME\" \"$PATH_INFO\"",
    );
    let app = Mount::new().at("/cgi-bin", site.host(|_| {}));
    let answer = ask(app, get("/cgi-bin/script/a/b")).await;
    assert_eq!(
        (answer.line("SCRIPT_NAME"), answer.line("PATH_INFO")),
        (Some("/cgi-bin/script"), Some("/a/b")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn what_is_not_found_is_one_line() {
    let site = Site::of("");
    let log = logged();
    let answer = ask(site.host(|_| {}), get("/nothing")).await;
    assert_eq!(answer.status, 404);
    let lines = log.lines();
    assert!(lines.len() == 1 && lines[0].starts_with("WARN request failed"), "{lines:?}");
}

#[tokio::test]
async fn an_aborted_body_is_nobodys_failure() {
    let site = Site::of("cat");
    let log = logged();
    let (environ, sender) = post_slowly("/script", Some(10_000));
    sender.send(Err(InputError::Aborted)).await.unwrap();
    refused(site.host(|_| {}), environ).await;
    assert_eq!(log.lines().len(), 0, "{:?}", log.lines());
}

#[allow(dead_code)]
fn a_host_is_an_application(host: gatespan::upstream::cgi::Host) -> impl Application {
    host
}
