//! The FastCGI forwarder in front of real servers: php-fpm, php-cgi, programs in C on libfcgi, in Perl and in Rust on
//! tokio-fastcgi, and our own gateway.
#![cfg(all(feature = "fastcgi", feature = "upstream-fastcgi"))]

mod support;
#[path = "support/log.rs"]
mod log;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatespan::address::Endpoint;
use gatespan::application::driver::{self, Response};
use gatespan::application::{Environ, Frame, Input, InputError, Source, Variables};
use gatespan::protocol::fastcgi::{RecordType, RequestId, Role, put_record};
use gatespan::upstream::fastcgi::{Config, Forwarder, ProgramConfig, ProgramError, Programs};
use rustix::process::{Pid, Signal, getuid, kill_process, test_kill_process};
use support::client::{Client, Upload, get as get_page};
use support::process::{Listening, Scratch, Server, free_address, memory, program};
use support::{pattern, table};
use tokio::task::JoinSet;
use tokio::time::timeout;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/fastcgi");

/// A request for a path, with what PHP and others want to know.
fn environ(method: &str, script: &Path, path: &str, query: &str) -> Environ {
    let mut variables = Variables::new();
    for (name, value) in [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", "80"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("REQUEST_METHOD", method),
        ("SCRIPT_NAME", "/app"),
        ("PATH_INFO", path),
        ("QUERY_STRING", query),
        ("REQUEST_URI", &format!("/app{path}?{query}")),
        ("HTTP_HOST", "localhost"),
    ] {
        variables.set(name, value).unwrap();
    }
    variables.set("SCRIPT_FILENAME", script.as_os_str().as_encoded_bytes()).unwrap();
    Environ::new(variables)
}

/// The pattern as a request body, with its length or without.
fn upload(environ: Environ, len: u64, is_announced: bool) -> Environ {
    struct Blocks<I>(I);
    impl<I: Iterator<Item = Vec<u8>> + Send> Source for Blocks<I> {
        fn poll_chunk(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, InputError>>> {
            std::task::Poll::Ready(self.0.next().map(|block| Ok(block.into())))
        }
    }
    let blocks = pattern::blocks(len).map(|block| block.to_vec());
    let mut environ = environ.with_input(Input::from_source(Blocks(blocks), is_announced.then_some(len)));
    if is_announced {
        environ.set("CONTENT_LENGTH", len.to_string()).unwrap();
    }
    environ.set("CONTENT_TYPE", "application/octet-stream").unwrap();
    environ
}

struct Answer {
    status: u16,
    headers: Vec<String>,
    bytes: Bytes,
    text: String,
    cut: Option<String>,
}

impl Answer {
    /// Whether it is so many bytes of the pattern.
    fn is_pattern(&self, len: u64) -> bool {
        self.cut.is_none() && pattern::blocks(len).flatten().eq(self.bytes.iter().copied())
    }
}

async fn ask(forwarder: &Forwarder, environ: Environ) -> Answer {
    let exchange = async {
        let Response { head, mut body } = driver::answer(forwarder.clone(), environ).await;
        let came = body.read_to_end(1 << 26).await;
        body.close().await;
        let headers = head.headers.iter();
        Answer {
            status: head.status.code(),
            headers: headers
                .map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii()))
                .collect(),
            text: came.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default(),
            bytes: came.as_ref().cloned().unwrap_or_default(),
            cut: came.err().map(|error| error.to_string()),
        }
    };
    timeout(Duration::from_secs(60), exchange).await.expect("an answer in time")
}

fn forwarder(endpoint: Endpoint, config: Config) -> Forwarder {
    Forwarder::new([endpoint], config).unwrap()
}

/// Both ways to treat connections, for a server that serves so many at once.
fn configs(connections: usize) -> [Config; 2] {
    [true, false].map(|keep_alive| Config { keep_alive, connections, ..Config::default() })
}

/// What every page of PHP has to come through with.
async fn php(endpoint: Endpoint, page: &Path, processes: usize) {
    for config in configs(processes) {
        let keep_alive = config.keep_alive;
        let forwarder = forwarder(endpoint.clone(), config);
        let get = |path: &str, query: &str| environ("GET", page, path, query);
        let answer = ask(&forwarder, get("", "a=1&b=%20")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        for line in ["REQUEST_METHOD=GET", "QUERY_STRING=a=1&b=%20", "HTTP_HOST=localhost", "[]"] {
            assert!(answer.text.lines().any(|came| came == line), "{line}: {}", answer.text);
        }
        let mut form = environ("POST", page, "", "").with_input(Input::from_bytes("quantity=100&item=3047936"));
        form.set("CONTENT_TYPE", "application/x-www-form-urlencoded").unwrap();
        let answer = ask(&forwarder, form).await;
        assert!(answer.text.contains(r#"{"quantity":"100","item":"3047936"}"#), "{}", answer.text);
        assert!(answer.text.contains("CONTENT_LENGTH=25"), "{}", answer.text);

        for (len, is_announced) in [(0, true), (1, true), (65_536, true), (3_000_000, true), (3_000_000, false)] {
            let answer = ask(&forwarder, upload(environ("POST", page, "/digest", ""), len, is_announced)).await;
            assert_eq!(answer.text, table::digest(len), "{len} {is_announced}");
        }
        for len in [0, 1, 100_000, 10_000_000] {
            let answer = ask(&forwarder, get("/bytes", &format!("n={len}"))).await;
            assert_eq!((answer.text.len(), answer.cut), (len, None));
        }
        let answer = ask(&forwarder, get("/redirect", "")).await;
        assert_eq!(answer.status, 302);
        assert!(answer.headers.contains(&"Location: https://elsewhere.example/".to_owned()), "{:?}", answer.headers);
        let answer = ask(&forwarder, get("/cookies", "")).await;
        let cookies = answer.headers.iter().filter(|header| header.starts_with("Set-Cookie: ")).count();
        assert_eq!((answer.status, cookies, &*answer.text), (404, 2, "not here\n"));
        assert_eq!(ask(&forwarder, environ("HEAD", page, "", "")).await.text, "");
        assert_eq!(ask(&forwarder, get("/error", "")).await.status, 500);

        // An event stream comes event by event.
        let mut response = driver::answer(forwarder.clone(), get("/stream", "")).await;
        let (began, mut first) = (Instant::now(), None);
        let mut text = Vec::new();
        while let Some(frame) = response.body.next().await {
            if let Frame::Data(data) = frame.unwrap() {
                first.get_or_insert(began.elapsed());
                text.extend_from_slice(&data);
            }
        }
        assert_eq!(String::from_utf8_lossy(&text), "data: 1\n\ndata: 2\n\ndata: 3\n\n");
        let all = began.elapsed();
        assert!(first.is_some_and(|first| all - first > Duration::from_millis(250)), "{first:?} of {all:?}");

        // Many more at once than there are processes.
        let mut tasks = JoinSet::new();
        for number in 0..60_usize {
            let (forwarder, environ) = (forwarder.clone(), get("/bytes", &format!("n={number}")));
            tasks.spawn(async move { (number, ask(&forwarder, environ).await) });
        }
        while let Some(came) = tasks.join_next().await {
            let (number, answer) = came.unwrap();
            assert_eq!((answer.status, answer.text.len()), (200, number), "keep-alive {keep_alive}: {}", answer.text);
        }
    }
}

/// A folder with the pages, which the servers' user can read.
fn page(scratch: &Scratch) -> PathBuf {
    let page = scratch.path("htdocs/page.php");
    fs::copy(Path::new(FIXTURES).join("page.php"), &page).unwrap();
    page
}

fn php_fpm(scratch: &Scratch, max_requests: &str) -> Server {
    let root_only = if getuid().is_root() { "" } else { ";" };
    let values = [("ROOT_ONLY", root_only), ("MAX_REQUESTS", max_requests)];
    let configuration = scratch.configuration("php-fpm.conf", &values);
    let mut command = program("/usr/sbin/php-fpm8.2", "php8.2-fpm");
    command.arg("--nodaemonize").arg("--no-php-ini").arg("--fpm-config").arg(configuration);
    Server::start(scratch, "php-fpm", command, &["php-fpm.log"]).ready_at(&scratch.path("php.sock"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php_fpm_answers() {
    let scratch = Scratch::new();
    let _server = php_fpm(&scratch, "0");
    php(Endpoint::Unix(scratch.path("php.sock")), &page(&scratch), 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php_fpm_that_is_asked_more_than_it_has_processes_does_not_starve() {
    let scratch = Scratch::new();
    let _server = php_fpm(&scratch, "0");
    // The cap is far over the two processes, and connections are kept.
    php(Endpoint::Unix(scratch.path("php.sock")), &page(&scratch), 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php_fpm_that_renews_its_processes_loses_no_request() {
    let scratch = Scratch::new();
    let _server = php_fpm(&scratch, "7");
    let page = page(&scratch);
    for config in configs(2) {
        let forwarder = forwarder(Endpoint::Unix(scratch.path("php.sock")), config);
        let mut tasks = JoinSet::new();
        for client in 0..4 {
            let (forwarder, page) = (forwarder.clone(), page.clone());
            tasks.spawn(async move {
                for number in 0..100 {
                    let method = if number % 2 == 0 { "GET" } else { "POST" };
                    let answer = ask(&forwarder, environ(method, &page, "/pid", "")).await;
                    assert_eq!(answer.status, 200, "client {client}, request {number}, {method}: {}", answer.text);
                }
            });
        }
        while let Some(came) = tasks.join_next().await {
            came.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php_cgi_answers() {
    let scratch = Scratch::new();
    let socket = scratch.path("php-cgi.sock");
    let mut command = program("/usr/bin/php-cgi", "php8.2-cgi");
    command.arg("-n").arg("-d").arg("display_errors=0").arg("-b").arg(&socket).env("PHP_FCGI_MAX_REQUESTS", "0");
    let _server = Server::start(&scratch, "php-cgi", command, &[]).ready_at(&socket);
    php(Endpoint::Unix(socket), &page(&scratch), 1).await;
}

/// The program in C.
fn libfcgi(scratch: &Scratch) -> PathBuf {
    scratch.libfcgi()
}

fn workers(path: impl Into<PathBuf>, workers: usize) -> ProgramConfig {
    ProgramConfig { workers, backoff: Duration::from_millis(20), ..ProgramConfig::new(path) }
}

const NO_SCRIPT: &str = "/srv/app";

fn get(path: &str) -> Environ {
    environ("GET", Path::new(NO_SCRIPT), path, "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_in_c_answers() {
    let log = log::capture();
    let scratch = Scratch::new();
    let path = libfcgi(&scratch);
    for config in configs(1) {
        let programs = Programs::start(workers(&path, 2), config).unwrap();
        let forwarder = programs.forwarder().clone();
        for path in ["/echo", "/echo-at-once"] {
            for len in [0, 1, 65_535, 2_000_000] {
                let answer = ask(&forwarder, upload(environ("POST", Path::new(NO_SCRIPT), path, ""), len, true)).await;
                assert!(answer.status == 200 && answer.is_pattern(len), "{path} {len}: {}", answer.bytes.len());
            }
        }
        assert_eq!(ask(&forwarder, get("/slow")).await.text, "0\n1\n2\n");
        assert_eq!(ask(&forwarder, get("/long")).await.text, "long");
        let short = ask(&forwarder, get("/short")).await;
        assert!(short.cut.unwrap().contains("94 bytes before its Content-Length"));
        let mut with_id = get("/status");
        with_id.set("HTTP_X_REQUEST_ID", "c-status").unwrap();
        assert_eq!(ask(&forwarder, with_id).await.text, "status\n");
        let unread = upload(environ("POST", Path::new(NO_SCRIPT), "/unread", ""), 1_000_000, true);
        let answer = ask(&forwarder, unread).await;
        assert_eq!((answer.status, &*answer.text), (200, "unread\n"));
        programs.shutdown().await;
    }
    let lines = log.of("c-status");
    assert!(lines.iter().any(|line| line.contains("stderr: it ends with 7")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("application_status=7")), "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_in_c_says_yes_and_no() {
    let scratch = Scratch::new();
    let config = Config { role: Some(Role::Authorizer), keep_alive: true, ..Config::default() };
    let programs = Programs::start(workers(libfcgi(&scratch), 1), config).unwrap();
    for _ in 0..3 {
        for (user, status) in [("alice", 200), ("mallory", 403)] {
            let mut environ = get("/");
            environ.set("REMOTE_USER", user).unwrap();
            let answer = ask(programs.forwarder(), environ).await;
            assert_eq!(answer.status, status, "{user}");
            assert_eq!(answer.headers.contains(&"Variable-GROUP: staff".to_owned()), user == "alice");
        }
    }
    programs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_in_perl_answers() {
    let scratch = Scratch::new();
    assert!(
        Path::new("/usr/lib/x86_64-linux-gnu/perl5").exists(),
        "run tests/install, or: apt-get install libfcgi-perl"
    );
    let path = scratch.path("fcgi.pl");
    fs::copy(Path::new(FIXTURES).join("fcgi.pl"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for config in configs(1) {
        let programs = Programs::start(workers(&path, 2), config).unwrap();
        for number in 0..10 {
            let mut post =
                environ("POST", &path, "/", &format!("n={number}")).with_input(Input::from_bytes("the body"));
            post.set("HTTP_COOKIE", "a=b").unwrap();
            let answer = ask(programs.forwarder(), post).await;
            assert_eq!(answer.status, 201, "{}", answer.text);
            let expected =
                format!("REQUEST_METHOD=POST\nQUERY_STRING=n={number}\nCONTENT_LENGTH=8\nHTTP_COOKIE=a=b\n\nthe body");
            assert_eq!(answer.text, expected);
            assert!(answer.headers.contains(&"X-Perl: 2".to_owned()), "{:?}", answer.headers);
        }
        programs.shutdown().await;
    }
}

/// The crate of that name as a server: it tells the query and the length and the sum of the bytes of its input.
async fn tokio_fastcgi(listener: tokio::net::UnixListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        tokio::spawn(async move {
            let mut requests = tokio_fastcgi::Requests::from_split_socket(stream.into_split(), 8, 8);
            while let Ok(Some(request)) = requests.next().await {
                let answered = request.process(|request| async move {
                    let mut body = Vec::new();
                    if request.get_stdin().read_to_end(&mut body).is_err() {
                        return tokio_fastcgi::RequestResult::Complete(1);
                    }
                    let query = request.get_str_param("query_string").unwrap_or_default();
                    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
                    let answer = format!("Content-Type: text/plain\n\n{query} {} {sum}\n", body.len());
                    match request.get_stdout().write(answer.as_bytes()).await {
                        Ok(_) => tokio_fastcgi::RequestResult::Complete(0),
                        Err(_) => tokio_fastcgi::RequestResult::Complete(1),
                    }
                });
                if answered.await.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_in_rust_on_tokio_fastcgi_answers() {
    let scratch = Scratch::new();
    let path = scratch.path("tokio-fastcgi.sock");
    let server = tokio::spawn(tokio_fastcgi(tokio::net::UnixListener::bind(&path).unwrap()));
    for config in configs(4) {
        let forwarder = forwarder(Endpoint::Unix(path.clone()), config);
        for (number, (len, is_announced)) in
            [(0, true), (1, true), (65_536, true), (1_000_000, true), (1_000_000, false)].into_iter().enumerate()
        {
            let post = environ("POST", Path::new("/app"), "/", &format!("n={number}"));
            let answer = ask(&forwarder, upload(post, len, is_announced)).await;
            let sum: u64 = pattern::blocks(len).flatten().map(u64::from).sum();
            assert_eq!((answer.status, answer.text), (200, format!("n={number} {len} {sum}\n")));
            assert_eq!(answer.cut, None);
        }
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php_cgi_is_started_as_a_program() {
    let scratch = Scratch::new();
    let page = page(&scratch);
    let program_config = ProgramConfig { arguments: vec!["-n".into()], ..workers("/usr/bin/php-cgi", 2) };
    let config = Config { keep_alive: true, ..Config::default() };
    let programs = Programs::start(program_config, config).unwrap();
    for len in [10, 200_000] {
        let answer = ask(programs.forwarder(), upload(environ("POST", &page, "/digest", ""), len, false)).await;
        assert_eq!(answer.text, table::digest(len));
    }
    programs.shutdown().await;
}

fn pid(answer: &Answer) -> (i32, u32) {
    let (pid, served) =
        answer.text.trim().split_once(' ').unwrap_or_else(|| panic!("{}: {}", answer.status, answer.text));
    (pid.parse().unwrap(), served.parse().unwrap())
}

fn is_running(pid: i32) -> bool {
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_ends_is_started_again_and_costs_its_own_request_only() {
    let scratch = Scratch::new();
    let programs = Programs::start(workers(libfcgi(&scratch), 1), Config::default()).unwrap();
    let forwarder = programs.forwarder();
    let (first, _) = pid(&ask(forwarder, get("/pid")).await);
    let crash = environ("POST", Path::new(NO_SCRIPT), "/crash", "");
    assert_eq!(ask(forwarder, crash).await.status, 502);
    let (second, served) = pid(&ask(forwarder, get("/pid")).await);
    assert_ne!(first, second);
    assert_eq!(served, 1);
    let late = ask(forwarder, get("/crash-late")).await;
    assert_eq!(late.status, 200);
    assert!(late.cut.is_some());
    let (third, _) = pid(&ask(forwarder, get("/pid")).await);
    programs.shutdown().await;
    for pid in [first, second, third] {
        assert!(!is_running(pid));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_renews_itself_is_started_again_at_once() {
    let scratch = Scratch::new();
    let page = page(&scratch);
    let program_config = ProgramConfig {
        arguments: vec!["-n".into()],
        environment: vec![("PHP_FCGI_MAX_REQUESTS".into(), "2".into())],
        backoff: Duration::from_secs(1000),
        backoff_max: Duration::from_secs(1000),
        ..workers("/usr/bin/php-cgi", 1)
    };
    let programs = Programs::start(program_config, Config::default()).unwrap();
    let mut pids = std::collections::HashSet::new();
    for _ in 0..6 {
        let answer = ask(programs.forwarder(), environ("GET", &page, "/pid", "")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        pids.insert(answer.text);
    }
    assert_eq!(pids.len(), 3);
    programs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_renewed_after_its_number_of_requests_and_none_is_lost() {
    let scratch = Scratch::new();
    let path = libfcgi(&scratch);
    for config in configs(1) {
        let program = ProgramConfig { max_requests: Some(5), ..workers(&path, 2) };
        let programs = Programs::start(program, config).unwrap();
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let forwarder = programs.forwarder().clone();
            tasks.spawn(async move {
                let mut came = Vec::new();
                for number in 0..15 {
                    let method = if number % 2 == 0 { "GET" } else { "POST" };
                    let answer = ask(&forwarder, environ(method, Path::new(NO_SCRIPT), "/pid", "")).await;
                    came.push(pid(&answer));
                }
                came
            });
        }
        let came: Vec<(i32, u32)> = tasks.join_all().await.concat();
        assert!(came.iter().all(|(_, served)| *served <= 5), "{came:?}");
        let pids: std::collections::HashSet<i32> = came.iter().map(|(pid, _)| *pid).collect();
        assert!(pids.len() >= 120 / 5, "{} processes", pids.len());
        programs.shutdown().await;
        assert!(!pids.into_iter().any(is_running));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cve_2015_9253_a_program_that_ends_at_once_is_started_ever_more_slowly() {
    let scratch = Scratch::new();
    let (path, mark) = (scratch.path("crash"), scratch.path("marks/starts"));
    fs::write(&path, format!("#!/bin/sh\necho x >> {}\nexit 1\n", mark.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = ProgramConfig {
        backoff: Duration::from_millis(50),
        backoff_max: Duration::from_millis(800),
        ..workers(&path, 1)
    };
    let config =
        Config { queue_wait: Duration::from_secs(1), head_timeout: Duration::from_secs(1), ..Config::default() };
    let programs = Programs::start(program, config).unwrap();
    let status = ask(programs.forwarder(), get("/")).await.status;
    assert!(matches!(status, 502..=504), "{status}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let starts = fs::read_to_string(&mark).unwrap().lines().count();
    // 0, 50, 150, 350, 750, 1550, 2350, 3150, 3950 ms, and what a start takes.
    assert!((3..=9).contains(&starts), "{starts} starts");
    programs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_requests_finish_and_kills_what_does_not_end() {
    let scratch = Scratch::new();
    let programs = Programs::start(workers(libfcgi(&scratch), 1), Config::default()).unwrap();
    let forwarder = programs.forwarder().clone();
    let (pid, _) = pid(&ask(&forwarder, get("/pid")).await);
    let slow = tokio::spawn(async move { ask(&forwarder, get("/slow")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    programs.shutdown().await;
    assert_eq!(slow.await.unwrap().text, "0\n1\n2\n");
    assert!(!is_running(pid));

    // A program that does not listen to SIGTERM, with a child.
    let (path, mark) = (scratch.path("stubborn"), scratch.path("marks/stubborn"));
    fs::write(
        &path,
        format!("#!/bin/sh\ntrap '' TERM\nsleep 1000 &\necho $$ $! > {}\nwait\nsleep 1000\n", mark.display()),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = ProgramConfig { kill_grace: Duration::from_millis(300), ..workers(&path, 1) };
    let programs = Programs::start(program, Config::default()).unwrap();
    let started = Instant::now();
    let pids = loop {
        let text = fs::read_to_string(&mark).unwrap_or_default();
        if text.ends_with('\n') {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    programs.shutdown().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for pid in pids.split_whitespace() {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{pid}: {state}");
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_refused_at_the_start() {
    let scratch = Scratch::new();
    fs::write(scratch.path("plain"), "").unwrap();
    for (path, problem) in [("missing", "No such file"), ("htdocs", "no file"), ("plain", "nobody may execute")] {
        let error = Programs::start(ProgramConfig::new(scratch.path(path)), Config::default()).unwrap_err();
        assert!(matches!(error, ProgramError::Program { .. }));
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_has_no_more_of_this_processs_environment_than_it_should() {
    let scratch = Scratch::new();
    let (path, mark) = (scratch.path("environment"), scratch.path("marks/environment"));
    fs::write(&path, format!("#!/bin/sh\n/usr/bin/env > {0}.new; mv {0}.new {0}\nsleep 1000\n", mark.display()))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = ProgramConfig { environment: vec![("GIVEN".into(), "yes".into())], ..workers(&path, 1) };
    let programs = Programs::start(program, Config::default()).unwrap();
    let started = Instant::now();
    while !mark.exists() {
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    programs.shutdown().await;
    let text = fs::read_to_string(&mark).unwrap();
    assert!(text.lines().any(|line| line == "GIVEN=yes"), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_gateway_answers_over_every_kind_of_address() {
    let scratch = Scratch::new();
    let (socket, address) = (scratch.path("app.sock"), free_address());
    let _unix = scratch.application(&Listening::Unix(socket.clone()), &[]);
    let _tcp = scratch.application(&Listening::Tcp(address), &[]);
    let name = format!("gatespan-test-{}", std::process::id());
    let mut command = Command::new(scratch.path("cgi-bin/app"));
    command.arg(format!("fastcgi:@{name}"));
    let _abstract = Server::start(&scratch, "abstract", command, &[]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let endpoints = [
        Endpoint::Unix(socket),
        Endpoint::Tcp { host: "127.0.0.1".into(), port: address.port() },
        Endpoint::Tcp { host: "localhost".into(), port: address.port() },
        Endpoint::Abstract(name),
    ];
    for endpoint in endpoints {
        for config in configs(100) {
            let forwarder = forwarder(endpoint.clone(), config);
            for number in 0..20_u64 {
                let answer =
                    ask(&forwarder, upload(environ("POST", Path::new(NO_SCRIPT), "/digest", ""), number * 1000, true))
                        .await;
                assert_eq!(answer.text, table::digest(number * 1000), "{endpoint}");
            }
            let answer =
                ask(&forwarder, upload(environ("POST", Path::new(NO_SCRIPT), "/echo", ""), 20_000_000, true)).await;
            assert!(answer.is_pattern(20_000_000), "{endpoint}: {}", answer.bytes.len());
            assert_eq!(ask(&forwarder, get("/error-before")).await.status, 500);
            let cut = ask(&forwarder, environ("GET", Path::new(NO_SCRIPT), "/error-after", "n=100000")).await;
            assert!(cut.status == 200 && cut.cut.is_some());
        }
    }
}

/// The most memory that the forwarding process may have had resident, whatever the size of what passes through: 48 MiB.
const MEMORY: u64 = 48 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_uploads_and_downloads_pass_through_in_bounded_memory() {
    const LEN: u64 = 200_000_000;
    let scratch = Scratch::new();
    let socket = scratch.path("app.sock");
    let _application = scratch.application(&Listening::Unix(socket.clone()), &[]);
    let address = free_address();
    let mut command = Command::new(scratch.program("forward", "forward"));
    command.arg(format!("http://{address}")).env("FASTCGI_SERVER", &socket);
    let server = Server::start(&scratch, "forward", command, &[]).ready_on(address);
    let mut client = Client::connect(address).await.expect("a connection");
    for upload in [Upload::Sized(LEN), Upload::Chunked(LEN)] {
        let answer = client.send("POST", "/app/digest", &[], upload).await.expect("an answer");
        assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).into_owned()), (200, table::digest(LEN)));
    }
    let answer = get_page(address, &format!("/app/bytes?n={LEN}")).await.expect("an answer");
    assert!(answer.cut.is_none());
    let used = memory(server.pid());
    assert!(used < MEMORY, "{used} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_of_three_servers_costs_no_request_whose_head_had_not_been_sent() {
    let scratch = Scratch::new();
    let mut servers = Vec::new();
    let mut endpoints = Vec::new();
    for number in 0..3 {
        let socket = scratch.path(&format!("{number}.sock"));
        servers.push(scratch.application(&Listening::Unix(socket.clone()), &[]));
        endpoints.push(Endpoint::Unix(socket));
    }
    for keep_alive in [true, false] {
        let forwarder = Forwarder::new(endpoints.clone(), Config { keep_alive, ..Config::default() }).unwrap();
        let (done, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..200 {
            let (forwarder, done, stop) = (forwarder.clone(), done.clone(), stop.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(&forwarder, environ("GET", Path::new(NO_SCRIPT), "/environ", "")).await;
                    assert_eq!(answer.status, 200, "{}", answer.text);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while done.load(Ordering::Relaxed) < 600 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let victim = servers.pop().unwrap();
        kill_process(Pid::from_raw(victim.pid() as i32).unwrap(), Signal::KILL).unwrap();
        let at_the_kill = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < at_the_kill + 1000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(came) = tasks.join_next().await {
            came.unwrap();
        }
    }
}

/// Reads a request to the end of its body.
fn read_request(stream: &mut UnixStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\x01\x05\0\x01\0\0\0\0") {
        let mut buffer = [0; 4096];
        let len = stream.read(&mut buffer).unwrap();
        assert!(len > 0, "a whole request");
        request.extend_from_slice(&buffer[..len]);
    }
}

fn answer(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = format!("Content-Type: text/plain\r\n\r\n{text}");
    put_record(RecordType::Stdout, RequestId(1), head.as_bytes(), 0, &mut bytes);
    put_record(RecordType::EndRequest, RequestId(1), &[0; 8], 0, &mut bytes);
    bytes
}

#[tokio::test]
async fn a_short_request_that_a_kept_connection_left_unread_is_sent_again_whatever_its_method_is() {
    for (len, status) in [(0, 200), (100, 200), (5_000, 502)] {
        let scratch = Scratch::new();
        let path = scratch.path("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut first, _) = listener.accept().unwrap();
            read_request(&mut first);
            first.write_all(&answer("first")).unwrap();
            // The next request is here, and nobody reads it: for the other side the close is a reset.
            socket2::SockRef::from(&first).peek(&mut [std::mem::MaybeUninit::uninit()]).unwrap();
            drop(first);
            if status == 200 {
                let (mut second, _) = listener.accept().unwrap();
                read_request(&mut second);
                second.write_all(&answer("second")).unwrap();
            }
        });
        let forwarder = forwarder(Endpoint::Unix(path), Config { keep_alive: true, ..Config::default() });
        assert_eq!(ask(&forwarder, get("/")).await.text, "first");
        tokio::time::sleep(Duration::from_millis(15)).await;
        let post = environ("POST", Path::new(NO_SCRIPT), "/", "").with_input(Input::from_bytes(vec![b'x'; len]));
        assert_eq!(ask(&forwarder, post).await.status, status, "{len}");
        server.join().unwrap();
    }
}

#[tokio::test]
async fn a_unix_socket_whose_queue_is_full_is_tried_again_until_the_time_is_over() {
    let scratch = Scratch::new();
    let path = scratch.path("full.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let config = Config { connect_timeout: Duration::from_millis(300), ..Config::default() };
    let forwarder = forwarder(Endpoint::Unix(path), config);
    assert_eq!(ask(&forwarder, get("/")).await.status, 504);
    // Room comes in time.
    let server = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(socket.accept().unwrap());
        let (second, _) = socket.accept().unwrap();
        let mut second = UnixStream::from(std::os::fd::OwnedFd::from(second));
        read_request(&mut second);
        second.write_all(&answer("in time")).unwrap();
    });
    let config = Config { connect_timeout: Duration::from_secs(20), ..Config::default() };
    let forwarder = self::forwarder(Endpoint::Unix(scratch.path("full.sock")), config);
    assert_eq!(ask(&forwarder, get("/")).await.text, "in time");
    server.join().unwrap();
}
