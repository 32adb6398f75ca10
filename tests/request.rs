//! `gatespan request`, from outside: the tool itself against real servers, and against servers that do what no real one should.
#![cfg(feature = "cli")]

mod support;
#[path = "support/scripted.rs"]
mod scripted;
#[path = "support/bridge.rs"]
mod tool;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use gatespan::protocol::fastcgi::{RecordType, Role};
use gatespan::upstream::fastcgi::Connect;
use rustix::process::{Pid, Signal, kill_process};
use scripted::{Script, Scripted, Step, answer, end, record, stderr, stdout};
use serde_json::Value;
use support::process::{Listening, Scratch, Server, free_address, program};
use tokio::io::AsyncWriteExt;

/// Runs the tool to its end.
fn request(arguments: &[&str]) -> Output {
    tool::tool(&[&["request"], arguments].concat()).output().expect("the tool starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a run that has to end with that exit code.
fn output(code: i32, arguments: &[&str]) -> String {
    let output = request(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a run that has to end with that exit code.
fn errors(code: i32, arguments: &[&str]) -> String {
    let output = request(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

fn json(code: i32, arguments: &[&str]) -> Value {
    let text = output(code, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The value of a line `NAME=value`.
fn line(page: &str, name: &str) -> Option<String> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// A server that does what its scripts say, behind a Unix socket.
struct Fake {
    server: Scripted,
    to: String,
    _folder: tempfile::TempDir,
}

fn fake(scripts: impl IntoIterator<Item = Script>) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = Scripted::new(scripts);
    let connector = server.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                // One that is refused is closed at once.
                let Ok(server) = connector.connect().await else { continue };
                let (mut from_client, mut to_client) = socket.into_split();
                let (mut from_server, mut to_server) = tokio::io::split(server);
                // Each direction by itself: a server that reads no more may have sent something.
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    to_server.shutdown().await
                });
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            }
        });
    });
    Fake { server, to: format!("fastcgi:{}", path.display()), _folder: folder }
}

/// A server that answers one request with these bytes.
fn sending(bytes: &[u8]) -> Fake {
    fake([vec![Step::Request, Step::Send(bytes.to_vec())]])
}

fn head(head: &str) -> Vec<u8> {
    [stdout(head.as_bytes()), end(0, 0)].concat()
}

/// The conformance application as a FastCGI server, and its address.
fn application(scratch: &Scratch) -> (Server, String) {
    let socket = scratch.path("app.sock");
    let server = scratch.application(&Listening::Unix(socket.clone()), &[]);
    (server, format!("fastcgi:{}", socket.display()))
}

/// php-fpm with what `fixtures/health/php-fpm` adds to its configuration, and its address.
fn php(scratch: &Scratch) -> (Server, String) {
    let root_only = if rustix::process::getuid().is_root() { "" } else { ";" };
    let configuration = scratch.configuration("php-fpm/site.conf", &[("ROOT_ONLY", root_only)]);
    let health = fs::read_to_string(fixture("health/php-fpm/health.conf")).unwrap();
    let site = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, format!("{site}\n{}", health.replace("[www]", ""))).unwrap();
    let mut command = program("/usr/sbin/php-fpm8.2", "php8.2-fpm");
    command.arg("--nodaemonize").arg("--fpm-config").arg(configuration);
    let server = Server::start(scratch, "php-fpm", command, &["php-fpm.log"]).ready_at(&scratch.path("php.sock"));
    (server, format!("fastcgi:{}", scratch.path("php.sock").display()))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A file that php-fpm's workers, which are another user, may read.
fn page(scratch: &Scratch, name: &str, content: &str) {
    scratch.write(&format!("htdocs/{name}"), content);
    fs::set_permissions(scratch.path(&format!("htdocs/{name}")), fs::Permissions::from_mode(0o644)).unwrap();
}

// Exit codes and messages.

#[test]
fn every_kind_of_end_has_its_exit_code() {
    let html = "Content-Type: text/html\r\n\r\n";
    for (code, bytes) in [
        (0, answer("ok")),
        (0, head("Status: 204 No Content\r\n\r\n")),
        (0, head("Location: http://elsewhere/\r\n\r\n")),
        (0, head("Status: 304\r\nContent-Length: 5\r\n\r\n")),
        (4, head("Status: 404 Not Found\r\n\r\nno")),
        (5, head("Status: 503\r\n\r\n")),
        (9, [stdout(html.as_bytes()), end(3, 0)].concat()),
        (4, [stdout(b"Status: 404\r\n\r\n"), end(3, 0)].concat()),
        (5, [stdout(b"Status: 503\r\n\r\n"), end(0, 2)].concat()),
        (8, head("Status: 100 Continue\r\n\r\n")),
    ] {
        let server = sending(&bytes);
        output(code, &[&server.to]);
    }
}

#[test]
fn what_no_server_should_do_has_a_message_of_its_own() {
    let half = &stdout(b"Content-Type: text/plain\r\n\r\nhalf")[..20];
    let table = [
        (vec![], "the connection was closed without a byte"),
        (stdout(b"Content-Type: te"), "expected the head of an answer, but the connection was closed after 24 bytes"),
        (half.to_vec(), "expected the head of an answer, but the connection was closed after 20 bytes"),
        (stdout(b"Status: 200\r\n\r\nhalf"), "expected END_REQUEST, but the connection was closed"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "expected FastCGI records, got something else: expected a record of FastCGI version 1",
        ),
        (record(RecordType::EndRequest, 1, &[0; 4], 0), "expected 8 bytes of content in END_REQUEST, got 4"),
        (stdout(b"no head\r\n\r\n"), "expected the head of an answer, got something else: "),
        (end(7, 0), "before END_REQUEST, got nothing and application status 7"),
        ([stdout(b"Status: 2"), end(0, 0)].concat(), "before END_REQUEST, got 9 bytes that are none"),
        (head("Content-Length: 9\r\n\r\nshort"), "expected 9 bytes of body, as Content-Length says, got 5"),
        (head("Content-Length: 2\r\n\r\nlong"), "expected 2 bytes of body, as Content-Length says, got 4"),
        (end(0, 1), "CANT_MPX_CONN"),
        (end(0, 2), "OVERLOADED"),
        (end(0, 3), "UNKNOWN_ROLE, it is no responder"),
        ([stdout(b"Status: 200\r\n\r\n"), end(0, 9)].concat(), "expected a protocol status from 0 to 3"),
        (head("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "Transfer-Encoding"),
    ];
    for (bytes, message) in table {
        let server = sending(&bytes);
        let errors = errors(8, &[&server.to]);
        assert!(errors.starts_with("gatespan: ") && errors.contains(message), "{message}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[test]
fn an_answer_cut_at_any_byte_is_never_taken_for_a_whole_one() {
    let whole = [stderr(b"e\n"), answer("body")].concat();
    let server = fake((0..whole.len()).map(|cut| vec![Step::Request, Step::Send(whole[..cut].to_vec())]));
    for cut in 0..whole.len() {
        let run = request(&[&server.to]);
        assert_eq!(run.status.code(), Some(8), "cut at {cut}");
        assert!(b"body".starts_with(&run.stdout), "cut at {cut}: {}", text(&run.stdout));
    }
}

#[test]
fn a_server_that_can_not_be_reached_is_7() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let unix = format!("fastcgi:{}", socket.display());
    assert!(errors(7, &[&unix]).contains("expected a connection, got none: No such file"));
    drop(UnixListener::bind(&socket).unwrap());
    assert!(errors(7, &[&unix]).contains("refused"));
    let tcp = free_address();
    assert!(errors(7, &[&format!("fastcgi://{tcp}")]).contains("refused"));
    assert!(errors(7, &[&format!("http://{tcp}")]).contains("can't be reached"));
    errors(7, &["fastcgi:@no-such-gatespan-socket"]);
    errors(7, &["fastcgi:exec:/no/such/program"]);
    errors(7, &["cgi:/no/such/folder/"]);
    assert_eq!(errors(7, &[&unix, "-s"]), "");
    assert!(errors(7, &[&unix, "-sS"]).contains("refused"));
}

#[test]
fn a_server_that_resets_the_connection_is_8() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 8]);
            // The rest of the request is unread: such a close is a reset.
            drop(stream);
        }
    });
    let message = errors(8, &[&format!("fastcgi://{address}")]);
    assert!(message.contains("the connection was closed (Connection reset"), "{message}");
    errors(8, &[&format!("http://{address}")]);
}

#[test]
fn every_wait_ends_with_28_and_says_what_was_waited_for() {
    let hangs = || vec![Step::Request, Step::Hang];
    let begun = || vec![Step::Request, Step::Send(stdout(b"Status: 200\r\n\r\nfirst")), Step::Hang];
    let table = [
        (hangs(), "--head-timeout", "expected the head of an answer within 200ms, got nothing"),
        (hangs(), "--max-time", "expected the whole answer within 200ms"),
        (begun(), "--read-timeout", "expected more of the answer within 200ms, got nothing, got 5 bytes of its body"),
        (begun(), "--max-time", "expected the whole answer within 200ms, got 5 bytes of its body"),
        (
            vec![Step::Params, Step::Send(stdout(b"Status: ")), Step::Hang],
            "--head-timeout",
            "got 16 bytes that are none",
        ),
    ];
    for (script, option, message) in table {
        let server = fake([script]);
        let errors = errors(28, &[&server.to, option, "0.2"]);
        assert!(errors.contains(message), "{option}: {errors}");
    }
    // A server that takes nothing, and one whose queue is full.
    let server = fake([vec![Step::Hang]]);
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big");
    fs::write(&big, vec![b'x'; 4 << 20]).unwrap();
    errors(28, &[&server.to, "--data-binary", &format!("@{}", big.display()), "--head-timeout", "300ms"]);
    let socket = folder.path().join("full");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(&socket).unwrap();
    let full = errors(28, &[&format!("fastcgi:{}", socket.display()), "--connect-timeout", "200ms"]);
    assert!(full.contains("expected a connection within 200ms"), "{full}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("http://{}", silent.local_addr().unwrap());
    assert!(errors(28, &[&http, "--head-timeout", "200ms"]).contains("has not begun its answer"));
    errors(28, &[&http, "-m", "0.2"]);
}

#[test]
fn what_can_not_be_understood_is_2() {
    for arguments in [
        &[][..],
        &["/run/a.sock"],
        &["fastcgi:fd"],
        &["fastcgi:/a.sock", "ping"],
        &["fastcgi:/a.sock", "/a b"],
        &["fastcgi:/a.sock", "-H", "no field"],
        &["fastcgi:/a.sock", "-H", "Proxy: x"],
        &["fastcgi:/a.sock", "-F", "no part"],
        &["fastcgi:/a.sock", "-d", "a", "-F", "a=b"],
        &["fastcgi:/a.sock", "-p", "=x"],
        &["fastcgi:/a.sock", "-X", "A B"],
        &["fastcgi:/a.sock", "--role", "filter"],
        &["fastcgi:/a.sock", "--filter-data", "/dev/null"],
        &["fastcgi:/a.sock", "--role", "authorizer", "-d", "x"],
        &["fastcgi:/a.sock", "/path", "--values"],
        &["fastcgi:/a.sock", "--values", "X", "--client", "fastcgi-client"],
        &["fastcgi:/a.sock", "--role", "authorizer", "--client", "fastcgi-client"],
        &["fastcgi:/a.sock", "-m", "soon"],
        &["cgi:/tmp/", "--values"],
        &["cgi:/tmp/", "--role", "authorizer"],
        &["cgi:/tmp/", "--client", "fastcgi-client"],
        &["http://localhost:1", "-p", "A=b"],
        &["http://localhost:1", "--cacert", "/a.pem"],
        &["http://localhost:1", "--root", "/"],
        &["http://localhost:1/a", "/b"],
    ] {
        let output = request(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn files_that_are_not_there_are_1() {
    let server = fake([vec![Step::Request, Step::Send(answer("x"))]]);
    for arguments in [
        &["-d", "@/no/such/file"][..],
        &["--data-binary", "@/no/such/file"],
        &["-F", "a=@/no/such/file"],
        &["--env-file", "/no/such/file"],
        &["--env-file", "/dev/zero/x"],
        &["--role", "filter", "--filter-data", "/no/such/file"],
    ] {
        let message = errors(1, &[&[&*server.to], arguments].concat());
        assert!(message.contains("could not be read"), "{message}");
    }
    assert!(errors(1, &[&server.to, "-o", "/no/such/file"]).contains("/no/such/file: could not be written"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env");
    fs::write(&file, "A=1\nno variable\n").unwrap();
    let message = errors(1, &[&server.to, "--env-file", file.to_str().unwrap()]);
    assert!(message.contains("line 2: expected NAME=VALUE, got \"no variable\""), "{message}");
}

#[test]
fn help_and_documentation_have_the_same_exit_codes() {
    let help = output(0, &["--help"]);
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let numbers = |text: &str| -> Vec<u8> { text.split([',', ' ']).filter_map(|word| word.parse().ok()).collect() };
    let listed: Vec<u8> = codes.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/request.md")).unwrap();
    let table = document.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let documented: Vec<u8> =
        table.filter(|cell| cell.starts_with(|first: char| first.is_ascii_digit())).flat_map(numbers).collect();
    assert_eq!(documented, [&listed[..], &[143]].concat());
}

// What is shown.

#[test]
fn standard_output_is_the_body_and_what_is_asked_for_of_the_head() {
    let raw = "Status: 404 Gone Fishing\r\nX-Odd:  a\nContent-Type: text/plain\r\n\r\n";
    let once = |arguments: &[&str]| {
        let server = sending(&head(&format!("{raw}body")));
        output(4, &[&[&*server.to], arguments].concat())
    };
    assert_eq!(once(&[]), "body");
    assert_eq!(once(&["-i"]), format!("{raw}body"));
    assert_eq!(once(&["-I"]), raw);
    assert_eq!(once(&["-f"]), "");
    assert_eq!(once(&["-X", "HEAD"]), "");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    assert_eq!(once(&["-o", file.to_str().unwrap()]), "");
    assert_eq!(fs::read_to_string(&file).unwrap(), "body");
    assert_eq!(once(&["-o", "-"]), "body");
    // A body that is empty is an empty file, and not that of the answer before.
    let server = sending(&head("Content-Type: text/plain\r\n\r\n"));
    output(0, &[&server.to, "-o", file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
}

#[test]
fn the_applications_standard_error_is_marked_line_by_line() {
    let bytes = [stderr(b"one\ntw"), stderr(b"o\x1b[31m\r\n"), answer("body"), stderr(b"late")].concat();
    let server = sending(&bytes);
    let run = request(&[&server.to]);
    assert_eq!((text(&run.stdout), text(&run.stderr)), ("body".into(), "stderr: one\nstderr: two\\u{1b}[31m\n".into()));
    // What has no end is a line all the same.
    let server = sending(&[stderr(b"no end"), answer("")].concat());
    assert_eq!(errors(0, &[&server.to]), "stderr: no end\n");
}

#[test]
fn verbose_shows_the_records_of_both_directions_and_the_end() {
    let server = sending(&[stderr(b"oops\n"), stdout(b"Status: 200 OK\r\nX-A: b\r\n\r\nhello"), end(3, 0)].concat());
    let shown = errors(9, &[&server.to, "/p", "-d", "abc", "-v"]);
    let find = |mark: char, part: &str| {
        let found = shown.lines().find(|line| line.starts_with(mark) && line.contains(part));
        found.unwrap_or_else(|| panic!("no line {mark} {part} in {shown}")).to_owned()
    };
    let time: f64 = find('>', "BEGIN_REQUEST").split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((0.0..60.0).contains(&time), "{shown}");
    find('*', "connected");
    find('>', "PARAMS");
    find('>', "STDIN             1     3+5");
    find('<', "STDOUT");
    find('<', "STDERR");
    find('<', "END_REQUEST       1     8+0");
    find('<', "head: 200 OK");
    find('<', "X-A: b");
    find('*', "5 bytes of body, application status 3, protocol status REQUEST_COMPLETE");
    assert!(!shown.contains("  abc"), "{shown}");
    let server = sending(&answer("hello"));
    let shown = errors(0, &[&server.to, "-d", "abc", "-vv"]);
    assert!(shown.contains("  abc") && shown.contains("hello"), "{shown}");
    let server = sending(b"HTTP/1.0 400 Bad Request\r\n\r\n");
    assert!(errors(8, &[&server.to, "-v"]).contains("no record: \"HTTP/1.0"));
}

#[test]
fn json_is_a_summary_for_programs() {
    let server = sending(
        &[stderr(b"oops\n"), stdout(b"Status: 404 Not Found\r\nX-A: b\r\nX-A: c\r\n\r\nbody"), end(3, 0)].concat(),
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let run = request(&[&server.to, "/x", "--json", "-o", file.to_str().unwrap()]);
    assert_eq!((run.status.code(), text(&run.stderr)), (Some(4), String::new()));
    let summary: Value = serde_json::from_slice(&run.stdout).unwrap();
    for (name, value) in [
        ("version", Value::from(1)),
        ("to", Value::from(&*server.to)),
        ("client", Value::from("gatespan")),
        ("exit_code", Value::from(4)),
        ("error", Value::Null),
        ("attempts", Value::from(1)),
        ("status", Value::from(404)),
        ("reason", Value::from("Not Found")),
        ("headers", serde_json::json!([["X-A", "b"], ["X-A", "c"]])),
        ("bytes", Value::from(4)),
        ("application_status", Value::from(3)),
        ("signal", Value::Null),
        ("protocol_status", Value::from("REQUEST_COMPLETE")),
        ("stderr", Value::from("oops\n")),
        ("stderr_truncated", Value::from(false)),
    ] {
        assert_eq!(summary[name], value, "{name} in {summary}");
    }
    let times = ["connect", "first_byte", "total"].map(|name| summary["times"][name].as_f64().unwrap());
    assert!(times.is_sorted() && times[0] >= 0.0, "{summary}");
    assert_eq!(fs::read_to_string(file).unwrap(), "body");
    // Every member is there, whatever happened.
    let none = json(7, &["fastcgi:/no/such/socket", "-s"]);
    assert_eq!(none.as_object().unwrap().len(), summary.as_object().unwrap().len());
    assert_eq!((&none["error"]["kind"], &none["status"]), (&Value::from("unreachable"), &Value::Null));
    let documented = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/request.md")).unwrap();
    for member in summary.as_object().unwrap().keys().chain(summary["times"].as_object().unwrap().keys()) {
        assert!(documented.contains(&format!("`{member}`")), "docs/request.md does not say what {member} is");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let flood = vec![
        Step::Request,
        Step::Send(stdout(b"Status: 200\r\n\r\n")),
        Step::Repeat(stdout(&[b'x'; 999]), Duration::ZERO),
    ];
    let server = fake([flood]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = tool::tool(&["request", &server.to]).stdout(writer).spawn().unwrap();
    reader.read_exact(&mut [0; 5000]).unwrap();
    drop(reader);
    assert_eq!(exit_code(&mut child), Some(0));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn a_reader_that_does_not_go_on_holds_up_no_time_limit() {
    let begin = Step::Send(stdout(b"Status: 200\r\n\r\n"));
    let server = fake([vec![Step::Request, begin, Step::Repeat(stdout(&[b'x'; 9999]), Duration::ZERO)]]);
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut child = tool::tool(&["request", &server.to, "-m", "0.5"]).stdout(writer).spawn().unwrap();
    assert_eq!(exit_code(&mut child), Some(28));
}

fn exit_code(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < tool::SOON {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    panic!("it does not end");
}

#[test]
fn a_signal_gives_the_request_up() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let server = fake([vec![Step::Request, Step::Send(stdout(b"Status: 200\r\n\r\nx")), Step::Closed]]);
        let mut child = tool::tool(&["request", &server.to]).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(exit_code(&mut child), Some(code));
        // The server was told.
        let began = Instant::now();
        while server.server.aborts() == 0 {
            assert!(began.elapsed() < tool::SOON, "no ABORT_REQUEST came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

// Retries.

#[test]
fn what_may_pass_is_tried_again_and_only_the_last_answer_is_shown() {
    let busy = || vec![Step::Request, Step::Send(head("Status: 503\r\n\r\nbusy"))];
    let overloaded = || vec![Step::Request, Step::Send(end(0, 2))];
    let good = || vec![Step::Request, Step::Send(answer("good"))];
    let server = fake([busy(), overloaded(), good()]);
    let run = request(&[&server.to, "-d", "abc", "--retry", "5", "--retry-delay", "1ms"]);
    assert_eq!((run.status.code(), text(&run.stdout)), (Some(0), "good".into()));
    let said = text(&run.stderr);
    assert!(said.contains("got 503 Service Unavailable; trying again in 1ms, 4 more after that"), "{said}");
    assert!(said.contains("OVERLOADED"), "{said}");
    let bodies: Vec<_> = server.server.requests().into_iter().map(|request| request.stdin).collect();
    assert_eq!(bodies, [b"abc"; 3]);

    let server = fake([busy(), busy()]);
    let run = request(&[&server.to, "--retry", "1", "--retry-delay", "1ms", "-s"]);
    assert_eq!((run.status.code(), text(&run.stdout), text(&run.stderr)), (Some(5), "busy".into(), String::new()));
    let server = fake([busy(), good()]);
    assert_eq!(json(0, &[&server.to, "--retry", "1", "--retry-delay", "1ms", "-s"])["attempts"], 2);
    // Not without --retry, and nothing that will be the same again.
    let server = fake([busy(), good()]);
    output(5, &[&server.to]);
    let server = fake([vec![Step::Request, Step::Send(head("Status: 404\r\n\r\n"))], good()]);
    output(4, &[&server.to, "--retry", "1", "--retry-delay", "1ms"]);
    let server = fake([vec![Step::Request], good()]);
    output(8, &[&server.to, "--retry", "1", "--retry-delay", "1ms"]);
    let server = fake([vec![Step::Request], good()]);
    output(0, &[&server.to, "--retry", "1", "--retry-delay", "1ms", "--retry-all-errors"]);
    // Time-outs pass.
    let server = fake([vec![Step::Request, Step::Hang], good()]);
    assert_eq!(output(0, &[&server.to, "--retry", "1", "--retry-delay", "1ms", "-m", "0.5"]), "good");
    // In time only.
    let server = fake([busy(), good()]);
    output(5, &[&server.to, "--retry", "1", "--retry-delay", "1m", "--retry-max-time", "1s"]);
}

#[test]
fn a_server_that_is_about_to_start_is_waited_for_when_asked_for() {
    let scratch = Scratch::new();
    let socket = scratch.path("late.sock");
    let to = format!("fastcgi:{}", socket.display());
    output(7, &[&to, "--retry", "3", "--retry-delay", "1ms"]);
    let mut child = tool::tool(&[
        "request",
        &to,
        "/environ",
        "--retry",
        "3000",
        "--retry-delay",
        "10ms",
        "--retry-connrefused",
        "-s",
    ])
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let _server = scratch.application(&Listening::Unix(socket), &[]);
    assert_eq!(exit_code(&mut child), Some(0));
}

// What is sent.

#[test]
fn a_server_is_told_what_nginx_tells_it_and_what_the_options_say() {
    let server = sending(&answer(""));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env");
    fs::write(&file, "# of the test\nFROM_FILE=1\nBOTH=file\n").unwrap();
    let arguments = [
        "/a%20b.php/c?d=e",
        "--root",
        "/srv",
        "-H",
        "X-Own: 1",
        "-A",
        "me",
        "-b",
        "a=1",
        "-b",
        "b=2",
        "-u",
        "user:pass",
        "-e",
        "http://from/",
        "--env-file",
        file.to_str().unwrap(),
        "-p",
        "BOTH=option",
        "-p",
        "EMPTY=",
        "-p",
        "SERVER_SOFTWARE",
        "--keep-conn",
    ];
    output(0, &[&[&*server.to], &arguments[..]].concat());
    let [recorded] = &server.server.requests()[..] else { panic!("one request") };
    let param = |name: &str| {
        let values = recorded.params.iter().filter(|(each, _)| each == name.as_bytes());
        values.map(|(_, value)| text(value)).collect::<Vec<_>>().join("|")
    };
    for (name, value) in [
        ("SCRIPT_FILENAME", "/srv/a b.php"),
        ("SCRIPT_NAME", "/a b.php"),
        ("PATH_INFO", "/c"),
        ("DOCUMENT_URI", "/a b.php/c"),
        ("REQUEST_URI", "/a%20b.php/c?d=e"),
        ("QUERY_STRING", "d=e"),
        ("DOCUMENT_ROOT", "/srv"),
        ("REQUEST_METHOD", "GET"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", "80"),
        ("REDIRECT_STATUS", "200"),
        ("HTTP_HOST", "localhost"),
        ("HTTP_X_OWN", "1"),
        ("HTTP_USER_AGENT", "me"),
        ("HTTP_COOKIE", "a=1; b=2"),
        ("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz"),
        ("HTTP_REFERER", "http://from/"),
        ("FROM_FILE", "1"),
        ("BOTH", "option"),
    ] {
        assert_eq!(param(name), value, "{name}");
    }
    assert!(recorded.params.contains(&(b"EMPTY".to_vec(), Vec::new())) && recorded.keeps_connection);
    assert_eq!((param("SERVER_SOFTWARE"), param("CONTENT_LENGTH")), (String::new(), String::new()));
}

#[test]
fn an_authorizer_is_not_told_what_is_the_responders() {
    let server = sending(&head("Status: 200\r\nVariable-USER: me\r\n\r\n"));
    output(0, &[&server.to, "/x", "--role", "authorizer", "-p", "REMOTE_USER=me"]);
    let [recorded] = &server.server.requests()[..] else { panic!("one request") };
    assert!(recorded.role == Role::Authorizer);
    for name in ["CONTENT_LENGTH", "PATH_INFO", "SCRIPT_NAME", "SCRIPT_FILENAME"] {
        assert!(recorded.params.iter().all(|(each, _)| each != name.as_bytes()), "{name}");
    }
    let server = sending(&head("Status: 403\r\n\r\nno"));
    assert_eq!(output(4, &[&server.to, "--role", "authorizer"]), "no");
}

#[test]
fn a_filter_is_given_its_file_behind_the_body() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let server = fake([vec![Step::FilterRequest, Step::Send(answer("filtered"))]]);
    let arguments = ["-d", "body", "--role", "filter", "--filter-data", file.to_str().unwrap()];
    assert_eq!(output(0, &[&[&*server.to], &arguments[..]].concat()), "filtered");
    let [recorded] = &server.server.requests()[..] else { panic!("one request") };
    assert!(recorded.role == Role::Filter && recorded.stdin == b"body" && recorded.data.len() == 100_000);
    let has = |name: &str, value: &str| recorded.params.contains(&(name.into(), value.into()));
    assert!(has("FCGI_DATA_LENGTH", "100000"), "{:?}", recorded.params);
    assert!(recorded.params.iter().any(|(name, value)| name == b"FCGI_DATA_LAST_MOD" && value.len() >= 10));
}

#[test]
fn values_are_asked_for_on_a_connection_of_their_own() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let page = output(0, &[&to, "--values"]);
    assert_eq!(line(&page, "FCGI_MPXS_CONNS").as_deref(), Some("0"), "{page}");
    assert!(page.lines().count() == 3, "{page}");
    assert_eq!(output(0, &[&to, "--values", "FCGI_MPXS_CONNS", "UNKNOWN"]), "FCGI_MPXS_CONNS=0\n");
    assert_eq!(json(0, &[&to, "--values", "FCGI_MPXS_CONNS"]), serde_json::json!({ "FCGI_MPXS_CONNS": "0" }));

    for (script, code, message) in [
        (vec![Step::Sleep(Duration::from_millis(50))], 8, "the server closed the connection"),
        (
            vec![Step::Send(record(RecordType::UnknownType, 0, &[9, 0, 0, 0, 0, 0, 0, 0], 0)), Step::Hang],
            8,
            "UNKNOWN_TYPE",
        ),
        (vec![Step::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())], 8, "expected FastCGI records"),
        (vec![Step::Hang], 28, "many FastCGI servers do not answer GET_VALUES"),
    ] {
        let server = fake([script]);
        let errors = errors(code, &[&server.to, "--values", "--max-time", "0.5"]);
        assert!(errors.contains(message), "{errors}");
    }
}

// Real servers.

#[test]
fn our_own_application_is_asked_over_every_kind_of_address() {
    let scratch = Scratch::new();
    let (_unix, unix) = application(&scratch);
    let tcp = free_address();
    let _tcp = scratch.application(&Listening::Tcp(tcp), &[]);
    let http = free_address();
    let _http = scratch.application(&Listening::Http(http), &[]);
    let file = scratch.path("big");
    let (megabytes, upload) = (8, format!("@{}", file.display()));
    fs::write(&file, vec![b'z'; megabytes << 20]).unwrap();
    for to in [unix, format!("fastcgi://{tcp}"), format!("fastcgi:exec:{}", scratch.path("cgi-bin/app").display())] {
        let page = output(0, &[&to, "/environ?q=1", "--script", "", "-H", "X-Own: a"]);
        assert_eq!(line(&page, "PATH_INFO").as_deref(), Some("/environ"), "{page}");
        assert_eq!(line(&page, "HTTP_X_OWN").as_deref(), Some("a"), "{page}");
        let digest = output(0, &[&to, "/digest", "--script", "", "--data-binary", &upload]);
        assert!(digest.starts_with(&format!("{} ", megabytes << 20)), "{digest}");
        output(4, &[&to, "/status?code=418", "--script", "/"]);
        let run = request(&[&to, "/stderr?text=told-so", "--script", ""]);
        assert!(text(&run.stderr).contains("stderr: told-so"), "{}", text(&run.stderr));
        let cut = errors(8, &[&to, "/error-after?n=10", "--script", ""]);
        assert!(cut.contains("expected END_REQUEST") || cut.contains("Content-Length"), "{cut}");
    }
    let to = format!("http://{http}");
    let page = output(0, &[&format!("{to}/environ?q=1"), "-H", "X-Own: a"]);
    assert_eq!(line(&page, "HTTP_X_OWN").as_deref(), Some("a"), "{page}");
    assert_eq!(line(&page, "QUERY_STRING").as_deref(), Some("q=1"), "{page}");
    assert!(line(&page, "HTTP_USER_AGENT").unwrap().starts_with("gatespan/"), "{page}");
    assert_eq!(line(&page, "HTTP_HOST"), Some(http.to_string()), "{page}");
    assert!(output(0, &[&to, "/digest", "--data-binary", &upload]).starts_with(&format!("{} ", megabytes << 20)));
    output(4, &[&to, "/status?code=418"]);
    errors(8, &[&to, "/error-after?n=10"]);
    let included = output(0, &[&to, "/redirect?code=302&to=/x", "-I"]);
    assert!(included.starts_with("Status: 302 Found\r\n") && included.contains("ocation: /x\r\n"), "{included}");
}

#[test]
fn a_program_that_ends_by_itself_is_named_and_nothing_is_left_of_one() {
    let scratch = Scratch::new();
    let program = |name: &str, text: &str| {
        let path = scratch.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        format!("fastcgi:exec:{}", path.display())
    };
    let message = errors(8, &[&program("ends", "#!/bin/sh\necho bad configuration >&2\nexit 3\n")]);
    assert!(message.contains("stderr: bad configuration\n"), "{message}");
    assert!(message.contains("the program ended by itself (exit status: 3)"), "{message}");
    let mark = scratch.path("marks/pid");
    let sleeps = format!("#!/bin/sh\ntrap '' TERM\necho $$ > {}\nexec sleep 1000\n", mark.display());
    errors(28, &[&program("sleeps", &sleeps), "--max-time", "1"]);
    let pid = fs::read_to_string(mark).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "process {pid} is left");
}

#[test]
fn php_fpm_answers_its_ping_its_status_and_its_scripts() {
    let scratch = Scratch::new();
    page(
        &scratch,
        "dump.php",
        "<?php header('X-Script: yes'); error_log('to the log'); echo json_encode([$_SERVER['SCRIPT_NAME'], $_SERVER['PATH_INFO'] ?? null, $_GET, $_POST, array_map(fn ($file) => [$file['name'], $file['type'], file_get_contents($file['tmp_name'])], $_FILES)]);",
    );
    page(&scratch, "fails.php", "<?php http_response_code(500); echo 'no';");
    let (_php, to) = php(&scratch);
    assert_eq!(output(0, &[&to, "/ping"]), "pong");
    let status: Value = serde_json::from_str(&output(0, &[&to, "/status?json"])).unwrap();
    assert_eq!(status["pool"], "www");
    let root = scratch.path("htdocs");
    let root = root.to_str().unwrap();
    let file = scratch.path("upload.txt");
    fs::write(&file, "content").unwrap();
    let form = format!("file=@{};type=text/x-own", file.display());
    let page = output(0, &[&to, "/dump.php/info?a=b", "--root", root, "-F", "c=d e", "-F", &form]);
    let expected = serde_json::json!([
        "/dump.php", "/info", { "a": "b" }, { "c": "d e" }, { "file": ["upload.txt", "text/x-own", "content"] }
    ]);
    assert_eq!(serde_json::from_str::<Value>(&page).unwrap(), expected);
    assert!(output(0, &[&to, "/dump.php", "--root", root, "-I"]).contains("X-Script: yes\r\n"));
    let form = output(0, &[&to, "/dump.php", "--root", root, "--data-urlencode", "c=d&e", "-d", "f=g"]);
    assert!(form.contains(r#"{"f":"g","c":"d&e"}"#), "{form}");
    assert_eq!(output(5, &[&to, "/fails.php", "--root", root]), "no");
    assert!(output(4, &[&to, "/missing.php", "--root", root]).contains("File not found"));
    let summary = json(0, &[&to, "/ping", "--client", "fastcgi-client"]);
    assert_eq!((&summary["status"], &summary["application_status"]), (&Value::from(200), &Value::Null));
    // It answers GET_VALUES and closes, or only closes; never is that a silent wait.
    let values = request(&[&to, "--values"]);
    assert!(matches!(values.status.code(), Some(0 | 8)), "{}", text(&values.stderr));
}

#[test]
fn the_health_check_for_php_fpm_fails_when_php_fpm_is_gone() {
    let scratch = Scratch::new();
    let (php, to) = php(&scratch);
    let check = || {
        let folder = Path::new(env!("CARGO_BIN_EXE_gatespan")).parent().unwrap();
        let mut command = std::process::Command::new(fixture("health/php-fpm/healthcheck"));
        command.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).env("PHP_FPM", &to);
        let output = command.stdin(Stdio::null()).output().expect("the check runs");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(check(), (Some(0), "pong".into(), String::new()));
    drop(php);
    let (code, said, errors) = check();
    assert_eq!((code, &*said), (Some(1), ""), "{errors}");
    assert!(errors.contains("expected a connection, got none"), "{errors}");
}

#[test]
fn php_cgi_and_fcgiwrap_are_asked() {
    let scratch = Scratch::new();
    page(&scratch, "a.php", "<?php echo $_SERVER['QUERY_STRING'], file_get_contents('php://input');");
    let root = scratch.path("htdocs");
    let root = root.to_str().unwrap();
    let socket = scratch.path("php-cgi.sock");
    let mut command = program("/usr/bin/php-cgi", "php8.2-cgi");
    command.arg("-b").arg(&socket);
    let _php = Server::start(&scratch, "php-cgi", command, &[]).ready_at(&socket);
    let to = format!("fastcgi:{}", socket.display());
    assert_eq!(
        output(0, &[&to, "/a.php?q=", "--root", root, "-d", "body", "-H", "Content-Type: text/plain"]),
        "q=body"
    );

    let script = scratch.path("cgi-bin/s.sh");
    fs::write(&script, "#!/bin/sh\necho told >&2\nprintf 'Status: 404 No\\r\\n\\r\\n%s' \"$PATH_INFO\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = scratch.path("fcgiwrap.sock");
    let mut command = program("/usr/sbin/fcgiwrap", "fcgiwrap");
    // With -f, so that the scripts' standard error comes over the connection.
    command.arg("-f").arg("-s").arg(format!("unix:{}", socket.display()));
    let _fcgiwrap = Server::start(&scratch, "fcgiwrap", command, &[]).ready_at(&socket);
    let to = format!("fastcgi:{}", socket.display());
    let folder = scratch.path("cgi-bin");
    let arguments = [&*to, "/s.sh/info", "--root", folder.to_str().unwrap(), "--script", "/s.sh"];
    let run = request(&arguments);
    assert_eq!((run.status.code(), text(&run.stdout)), (Some(4), "/info".into()), "{}", text(&run.stderr));
    assert_eq!(text(&run.stderr), "stderr: told\n");
}

#[test]
fn nginx_is_asked_over_http() {
    let scratch = Scratch::new();
    page(&scratch, "file.txt", "content");
    let address = free_address();
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    let configuration =
        scratch.configuration("nginx/plain.conf", &[("PORT", &address.port().to_string()), ("SERVER", "")]);
    command.arg("-p").arg(scratch.path("")).arg("-c").arg(configuration);
    let _nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    let to = format!("http://{address}");
    assert_eq!(output(0, &[&to, "/file.txt"]), "content");
    let summary = json(0, &[&to, "/file.txt"]);
    assert_eq!((&summary["bytes"], &summary["protocol_status"]), (&Value::from(7), &Value::Null));
    assert!(output(4, &[&to, "/missing"]).contains("404"));
    // It speaks no FastCGI.
    errors(8, &[&format!("fastcgi://{address}"), "/"]);
}

#[test]
fn an_https_server_is_asked_if_its_certificate_is_good() {
    let scratch = Scratch::new();
    page(&scratch, "file.txt", "content");
    let (key, certificate) = (scratch.path("key.pem"), scratch.path("certificate.pem"));
    let made = program("/usr/bin/openssl", "openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args([Path::new("-keyout"), &key, Path::new("-out"), &certificate])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (address, secure) = (free_address(), free_address());
    let server = format!(
        "listen {secure} ssl; ssl_certificate {}; ssl_certificate_key {};",
        certificate.display(),
        key.display()
    );
    let values = [("PORT", &*address.port().to_string()), ("SERVER", &server)];
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-p").arg(scratch.path("")).arg("-c").arg(scratch.configuration("nginx/plain.conf", &values));
    let _nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(secure);
    let to = format!("https://localhost:{}/file.txt", secure.port());
    assert_eq!(output(0, &[&to, "--cacert", certificate.to_str().unwrap()]), "content");
    assert!(errors(7, &[&to]).contains("certificate"));
    errors(1, &[&to, "--cacert", "/no/such/file"]);
    // With -v what is asked is shown, as HTTP has it.
    let shown = errors(0, &[&to, "--cacert", certificate.to_str().unwrap(), "-v"]);
    assert!(shown.contains("GET /file.txt") && shown.contains("User-Agent: gatespan/"), "{shown}");
}

// CGI programs.

#[test]
fn cgi_programs_are_run_without_a_web_server() {
    let scratch = Scratch::new();
    let script = scratch.path("cgi-bin/own.sh");
    fs::write(&script, "#!/bin/sh\necho told >&2\nprintf 'Content-Type: text/plain\\r\\nX-A: b\\r\\n\\r\\n'\necho \"$REQUEST_METHOD $SCRIPT_NAME $PATH_INFO $QUERY_STRING $OWN $HTTP_X_OWN\"\ncat\nexit \"${CODE:-0}\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let own = format!("cgi:{}/", scratch.path("cgi-bin").display());
    let run = request(&[&own, "/own.sh/p%20q?r=s", "-p", "OWN=1", "-H", "X-Own: 2", "-d", "body"]);
    assert_eq!(text(&run.stdout), "POST /own.sh /p q r=s 1 2\nbody", "{}", text(&run.stderr));
    assert_eq!((run.status.code(), text(&run.stderr)), (Some(0), "stderr: told\n".into()));
    let program = format!("cgi:{}", script.display());
    assert!(output(0, &[&program, "/any/path"]).starts_with("GET  /any/path"));
    assert_eq!(output(0, &[&own, "/own.sh", "-I"]), "Status: 200 OK\r\nContent-Type: text/plain\r\nX-A: b\r\n\r\n");
    let failed = json(9, &[&own, "/own.sh", "-p", "CODE=3"]);
    assert_eq!((&failed["application_status"], &failed["stderr"]), (&Value::from(3), &Value::from("told\n")));
    let shown = errors(9, &[&own, "/own.sh", "-p", "CODE=3", "-v"]);
    assert!(shown.contains("OWN=") || shown.contains("CODE=3"), "{shown}");
    assert!(shown.contains("head: 200 OK") && shown.contains("application status 3"), "{shown}");

    for (code, path, message) in [
        (8, "/head-missing.sh", "expected a header field, got a line without a colon"),
        (8, "/head-no-colon.sh", "colon"),
        (7, "/no-interpreter.sh", "where there is none"),
        (7, "/not-there.sh", "expected a script, found none at"),
        (7, "/not-executable.sh", "no exec bit is set"),
        (28, "/sleeps-before.sh?100", "expected a response head within 300ms"),
    ] {
        let from = fixture("cgi-bin/misbehaving").join(path[1..].trim_end_matches("?100"));
        if from.exists() {
            fs::copy(&from, scratch.path("cgi-bin").join(from.file_name().unwrap())).unwrap();
        }
        let errors = errors(code, &[&own, path, "--head-timeout", "300ms"]);
        assert!(errors.contains(message), "{path}: {errors}");
        assert_eq!(errors.lines().filter(|line| line.starts_with("gatespan: ")).count(), 1, "{path}: {errors}");
    }
}

#[test]
fn a_cgi_program_does_not_outlive_a_request_that_was_given_up() {
    let scratch = Scratch::new();
    let (script, mark) = (scratch.path("cgi-bin/waits.sh"), scratch.path("marks/pid"));
    let text = format!("#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 1000\n", mark.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = tool::tool(&["request", &format!("cgi:{}", script.display())]).spawn().unwrap();
    let began = Instant::now();
    while !mark.exists() {
        assert!(began.elapsed() < tool::SOON, "the script does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(exit_code(&mut child), Some(130));
    let pid = fs::read_to_string(mark).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "process {pid} is left");
}

// The other client.

#[test]
fn the_other_client_gets_the_same_answers() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let file = scratch.path("big");
    fs::write(&file, vec![b'z'; 300_000]).unwrap();
    let upload = format!("@{}", file.display());
    for arguments in [
        &["/environ?q=1", "-H", "X-Own: a"][..],
        &["/digest", "--data-binary", &upload],
        &["/status?code=418"],
        &["/headers", "-i"],
        &["/stderr?text=told-so"],
    ] {
        let arguments = [&[&*to, "--script", ""], arguments].concat();
        let sorted = |arguments: &[&str]| {
            let run = request(arguments);
            let mut lines: Vec<_> = text(&run.stdout).lines().map(str::to_owned).collect();
            // It sends the variables in any order, and a repeated one once.
            lines.sort();
            (run.status.code(), lines, text(&run.stderr))
        };
        let other = [&arguments[..], &["--client", "fastcgi-client"]].concat();
        // It ends STDIN twice. Where the server has closed before the second, it can't write that, or sees a reset instead of the end that it
        // has received: docs/fastcgi-client.md.
        let is_too_late = |(_, _, errors): &(_, _, String)| {
            ["Broken pipe", "Connection reset by peer"].iter().any(|what| errors.contains(what))
        };
        let theirs = (0..50).map(|_| sorted(&other)).find(|came| !is_too_late(came)).expect("it is in time once");
        assert_eq!(theirs, sorted(&arguments), "{arguments:?}");
    }
    // With a body it ends STDIN once.
    let shown = errors(0, &[&to, "/digest", "-d", "a=1", "--script", "", "--client", "fastcgi-client", "-v"]);
    assert!(shown.contains("> ") && shown.contains("BEGIN_REQUEST") && shown.contains("END_REQUEST"), "{shown}");
}

#[test]
fn a_panic_of_the_other_client_is_named_and_the_server_is_not_blamed() {
    let script = || vec![Step::Request, Step::Send(record(RecordType::EndRequest, 1, &[0; 4], 0))];
    let server = fake([script(), script()]);
    let message = errors(8, &[&server.to, "--client", "fastcgi-client"]);
    assert!(message.starts_with("gatespan: fastcgi-client panicked: "), "{message}");
    assert!(message.contains("(meta.rs:") && message.contains("the client's fault"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(json(8, &[&server.to, "--client", "fastcgi-client", "-s"])["error"]["kind"], "protocol");
}

#[test]
fn the_other_client_has_the_same_time_limits_and_sends_only_text() {
    let server = fake([vec![Step::Request, Step::Hang], vec![Step::Request, Step::Hang]]);
    for option in ["--max-time", "--head-timeout"] {
        errors(28, &[&server.to, "--client", "fastcgi-client", option, "200ms"]);
    }
    use std::os::unix::ffi::OsStrExt;
    let mut command = tool::tool(&["request", &server.to, "--client", "fastcgi-client", "-p"]);
    let run = command.arg(std::ffi::OsStr::from_bytes(b"BYTES=\xff")).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("fastcgi-client sends only text"), "{}", text(&run.stderr));
}

#[test]
fn an_unknown_protocol_status_is_said_by_its_number_and_by_the_other_client_as_another() {
    let script = || vec![Step::Request, Step::Send([stdout(b"Status: 200\r\n\r\n"), end(0, 9)].concat())];
    let server = fake([script(), script()]);
    assert!(errors(8, &[&server.to]).contains("got protocol status 9"));
    assert!(errors(8, &[&server.to, "--client", "fastcgi-client"]).contains("UnknownRole"));
}

#[test]
fn standard_input_is_a_body() {
    let server = fake([vec![Step::Request, Step::Send(answer(""))]]);
    let mut child = tool::tool(&["request", &server.to, "--data-binary", "@-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from\nstdin").unwrap();
    assert_eq!(exit_code(&mut child), Some(0));
    assert_eq!(server.server.requests()[0].stdin, b"from\nstdin");
}

#[test]
fn an_answer_is_passed_on_as_it_comes() {
    let server = fake([vec![Step::Request, Step::Send(stdout(b"Status: 200\r\n\r\nfirst")), Step::Hang]]);
    let mut child = tool::tool(&["request", &server.to]).spawn().unwrap();
    let mut first = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first");
    child.kill().unwrap();
    child.wait().unwrap();
}
