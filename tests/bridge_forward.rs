//! `gatespan bridge` to servers, sites and folders, from outside: the tool itself between real ends.
#![cfg(feature = "cli")]

mod support;
#[path = "support/bridge.rs"]
mod tool;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use support::process::{Listening, Scratch, Server, free_address, program};
use tool::{Bridge, PORT, ask, body, header, status};

/// Copies a site of `fixtures/php` to where php-fpm's workers, which are another user, may read it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o777)).unwrap();
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), &target).unwrap();
                fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
            }
        }
    }
}

/// php-fpm, and a site for it in `htdocs`.
fn php(fixture: &str) -> (Scratch, Server) {
    let scratch = Scratch::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/php").join(fixture), &scratch.path("htdocs"));
    let root_only = if rustix::process::getuid().is_root() { "" } else { ";" };
    let configuration = scratch.configuration("php-fpm/site.conf", &[("ROOT_ONLY", root_only)]);
    let mut command = program("/usr/sbin/php-fpm8.2", "php8.2-fpm");
    command.arg("--nodaemonize").arg("--fpm-config").arg(configuration);
    let fpm = Server::start(&scratch, "php-fpm", command, &["php-fpm.log"]).ready_at(&scratch.path("php.sock"));
    (scratch, fpm)
}

fn text(scratch: &Scratch, name: &str) -> String {
    scratch.path(name).display().to_string()
}

/// The conformance application as a FastCGI server, and its address.
fn application(scratch: &Scratch) -> (Server, String) {
    let socket = scratch.path("app.sock");
    let server = scratch.application(&Listening::Unix(socket.clone()), &[]);
    (server, format!("fastcgi:{}", socket.display()))
}

/// A GET with further header lines.
fn get_with(bridge: &Bridge, path: &str, lines: &str) -> String {
    bridge.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n"))
}

/// The value of a variable on a page of them.
fn variable(page: &str, name: &str) -> Option<String> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

// PHP.

#[test]
fn a_php_site_is_one_command() {
    let (scratch, _fpm) = php("flat");
    let (to, root) = (format!("fastcgi:{}", text(&scratch, "php.sock")), text(&scratch, "htdocs"));
    let bridge = Bridge::start(&[PORT, &to, "--root", &root]);
    assert!(bridge.body("/").contains("<title>Guest book</title>"));
    let style = bridge.get("/style.css");
    assert!(header(&style, "Content-Type").unwrap().starts_with("text/css"), "{style}");
    let page = bridge.body("/info.php/a%20b?c=d");
    for (name, value) in [
        ("SCRIPT_NAME", "/info.php"),
        ("PATH_INFO", "/a b"),
        ("QUERY_STRING", "c=d"),
        ("DOCUMENT_ROOT", &*root),
        ("SCRIPT_FILENAME", &format!("{root}/info.php")),
        ("REMOTE_ADDR", "127.0.0.1"),
    ] {
        assert_eq!(variable(&page, name).as_deref(), Some(value), "{name} in {page}");
    }
    let chunked = bridge.ask(
        "POST /info.php HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert!(body(&chunked).contains("CONTENT_LENGTH=3\n") && body(&chunked).ends_with("body=abc\n"), "{chunked}");
    assert_eq!(status(&bridge.get("/missing.php")), 404);
    assert_eq!(status(&bridge.get("/missing")), 404);
    bridge.stop();
}

#[test]
fn index_deny_and_script_ending_say_what_a_site_gives_out() {
    let (scratch, _fpm) = php("flat");
    let (to, root) = (format!("fastcgi:{}", text(&scratch, "php.sock")), text(&scratch, "htdocs"));
    let bridge = Bridge::start(&[PORT, &to, "--root", &root]);
    assert_eq!((status(&bridge.get("/dump.sql")), status(&bridge.get("/data/README"))), (200, 200));
    bridge.stop();
    let options = ["--deny", "*.sql", "--deny", "/data", "--index", "info.php", "--cache-control", "max-age=60"];
    let bridge = Bridge::start(&[&[PORT, &to, "--root", &root], &options[..]].concat());
    assert_eq!((status(&bridge.get("/dump.sql")), status(&bridge.get("/data/README"))), (403, 403));
    assert_eq!(variable(&bridge.body("/"), "SCRIPT_NAME").as_deref(), Some("/info.php"));
    assert_eq!(header(&bridge.get("/style.css"), "Cache-Control"), Some("max-age=60"));
    bridge.stop();
    // Then .php is a file's ending like any other, which is why it takes an option to say so.
    let bridge = Bridge::start(&[PORT, &to, "--root", &root, "--script-ending", ".phtml"]);
    assert!(bridge.body("/index.php").starts_with("<?php"));
    bridge.stop();
}

#[test]
fn try_files_leads_to_a_front_controller() {
    let (scratch, _fpm) = php("front");
    let (to, root) = (format!("fastcgi:{}", text(&scratch, "php.sock")), text(&scratch, "htdocs/public"));
    let bridge = Bridge::start(&[PORT, &to, "--root", &root, "--try-files", "$uri $uri/ /index.php?$args"]);
    assert_eq!(bridge.body("/"), "home\n");
    assert_eq!(bridge.body("/articles/x?a=b"), "article x with a=b\n");
    assert_eq!(status(&bridge.get("/assets/app.js")), 200);
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &to, "--root", &root]);
    assert_eq!(status(&bridge.get("/articles/x")), 404);
    bridge.stop();
    // A route can be a site, too, where TO takes no folder; its scripts know their place.
    let route = format!("/blog={to}");
    let list = "$uri /index.php$is_args$args";
    let bridge = Bridge::start(&[PORT, "app:hello", "--route", &route, "--root", &root, "--try-files", list]);
    assert_eq!(bridge.body("/blog/articles/y"), "article y with \n");
    assert_eq!(bridge.body("/"), "Hello by way of http.\n");
    bridge.stop();
}

#[test]
fn each_route_may_be_a_site_of_its_own() {
    let (flat, _one) = php("flat");
    let (front, _two) = php("front");
    let (to, root) = (format!("fastcgi:{}", text(&flat, "php.sock")), text(&flat, "htdocs"));
    let blog = format!("/blog=fastcgi:{}", text(&front, "php.sock"));
    let blog_root = format!("/blog={}", text(&front, "htdocs/public"));
    let list = "$uri $uri/ /index.php?$args";
    let bridge =
        Bridge::start(&[PORT, &to, "--root", &root, "--route", &blog, "--root", &blog_root, "--try-files", list]);
    assert_eq!(variable(&bridge.body("/info.php"), "DOCUMENT_ROOT"), Some(root));
    assert_eq!(bridge.body("/blog/articles/y?a=1"), "article y with a=1\n");
    assert_eq!(status(&bridge.get("/blog/assets/app.js")), 200);
    assert_eq!(status(&bridge.get("/assets/app.js")), 200, "TO's front controller answers");
    bridge.stop();
}

#[test]
fn a_folder_of_scripts_may_be_a_route_s_own() {
    let scratch = Scratch::new();
    let script = |name: &str| {
        let path = scratch.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$SCRIPT_FILENAME\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("one/a");
    script("two/b");
    script("three/c");
    let [one, two, three] = ["one/", "two/", "three"].map(|name| text(&scratch, name));
    let (to, route, root) = (format!("cgi:{one}"), format!("/in=cgi:{two}"), format!("/in={three}"));
    let bridge = Bridge::start(&[PORT, &to, "--route", &route, "--root", &root]);
    assert_eq!(bridge.body("/a"), format!("{one}a"));
    assert_eq!(bridge.body("/in/b"), format!("{two}b"));
    assert_eq!(bridge.body("/in/c"), format!("{three}/c"));
    assert_eq!(status(&bridge.get("/c")), 404);
    bridge.stop();
}

#[test]
fn php_in_another_place_is_told_its_own_folder() {
    let (scratch, _fpm) = php("flat");
    let (to, root) = (format!("fastcgi:{}", text(&scratch, "php.sock")), text(&scratch, "htdocs"));
    std::os::unix::fs::symlink(&root, scratch.path("elsewhere")).unwrap();
    let there = text(&scratch, "elsewhere");
    let bridge = Bridge::start(&[PORT, &to, "--root", &root, "--script-root", &there]);
    assert_eq!(variable(&bridge.body("/info.php"), "DOCUMENT_ROOT"), Some(there));
    bridge.stop();
}

// FastCGI servers.

#[test]
fn a_script_of_one_line_reaches_a_fastcgi_server_whatever_stands_behind_to() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let script = scratch.path("cgi-bin/bridge.cgi");
    fs::write(&script, format!("#!/usr/bin/env -S {} bridge cgi: {to}\n", env!("CARGO_BIN_EXE_gatespan"))).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let variables = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("REQUEST_METHOD", "POST"),
        ("SCRIPT_NAME", "/app"),
        ("PATH_INFO", "/digest"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", "80"),
        ("PATH", "/usr/bin:/bin"),
        ("CONTENT_LENGTH", "3"),
    ];
    for words in [&[][..], &["--root", "/"], &["-s", "--help", "--also", "fastcgi:/none"], &["--", "app:hello"]] {
        let mut command = Command::new(&script);
        command.args(words).env_clear().envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"abc").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(answer.starts_with("Status: 200") && answer.contains("3 ba7816bf"), "{words:?}: {answer}");
    }
}

#[test]
fn fastcgi_to_fastcgi_behind_nginx_passes_on_what_nginx_says() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let front = text(&scratch, "front.sock");
    let bridge = Bridge::start(&[&format!("fastcgi:{front}"), &to, "--socket-mode", "666"]);
    let address = free_address();
    let values = [
        ("PORT", &*address.port().to_string()),
        ("ADDRESS", &format!("unix:{front}")),
        ("REQUEST_BUFFERING", "off"),
        ("BUFFERING", "off"),
    ];
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-p").arg(scratch.path("")).arg("-c").arg(scratch.configuration("nginx/closed.conf", &values));
    let _nginx = Server::start(&scratch, "nginx", command, &[]).ready_on(address);
    let get = |path: &str, more: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{more}\r\n");
        ask(TcpStream::connect(address).unwrap(), &request)
    };
    let page = body(&get("/app/environ?q=1", "X-Own: a\r\n"));
    for (name, value) in [
        ("SCRIPT_NAME", "/app"),
        ("PATH_INFO", "/environ"),
        ("QUERY_STRING", "q=1"),
        ("HTTP_X_OWN", "a"),
        ("HTTP_HOST", "here"),
        ("SERVER_NAME", "localhost"),
    ] {
        assert_eq!(variable(&page, name).as_deref(), Some(value), "{name} in {page}");
    }
    assert!(variable(&page, "SERVER_SOFTWARE").unwrap().starts_with("nginx/"), "{page}");
    assert_eq!(status(&get("/app/status?code=418", "")), 418);
    bridge.stop();
}

#[test]
fn further_servers_take_what_one_that_is_down_can_not() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let down = format!("fastcgi:{}", text(&scratch, "none.sock"));
    let bridge = Bridge::start(&[PORT, &down, "--also", &to]);
    for _ in 0..5 {
        assert!(bridge.body("/environ").contains("PATH_INFO=/environ\n"));
    }
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &down]);
    assert_eq!(status(&bridge.get("/environ")), 502);
    bridge.stop();
}

#[test]
fn keep_alive_is_off_until_asked_for() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let seen = |options: &[&str]| -> Vec<String> {
        let bridge = Bridge::start(&[&[PORT, &to], options].concat());
        let seen = (0..3).map(|_| variable(&bridge.body("/connection"), "connection").unwrap()).collect();
        bridge.stop();
        seen
    };
    let distinct = |mut seen: Vec<String>| {
        seen.dedup();
        seen.len()
    };
    assert_eq!(distinct(seen(&[])), 3);
    assert_eq!(distinct(seen(&["--keep-alive", "off"])), 3);
    assert_eq!(distinct(seen(&["--keep-alive", "on"])), 1);
    assert_eq!(distinct(seen(&["--keep-alive", "on", "--pool-size", "0"])), 3);
}

#[test]
fn requests_over_the_connections_to_a_server_wait_in_the_queue() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let options = ["--max-connections-to", "1", "--queue", "1", "--queue-wait", "300ms"];
    let bridge = Bridge::start(&[&[PORT, &to], &options[..]].concat());
    let mark = text(&scratch, "marks/first");
    let mut first = TcpStream::connect(&bridge.place).unwrap();
    first.write_all(format!("GET /linger?file={mark} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
    // Its head is here, so that it has its connection.
    assert_eq!(first.read(&mut [0; 12]).unwrap(), 12);
    assert_eq!(status(&bridge.get("/environ")), 503);
    drop(first);
    bridge.stop();
}

#[test]
fn time_limits_hold_for_servers() {
    let scratch = Scratch::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    for to in [format!("fastcgi://{address}"), format!("http://{address}")] {
        for option in ["--head-timeout", "--timeout"] {
            let bridge = Bridge::start(&[PORT, &to, option, "200ms"]);
            assert_eq!(status(&bridge.get("/")), 504, "{to} {option}");
            bridge.stop();
        }
    }
    // In a body it is a cut: there is less of it than was announced.
    let (_server, to) = application(&scratch);
    let bridge = Bridge::start(&[PORT, &to, "--read-timeout", "300ms"]);
    let answer = bridge.get(&format!("/linger?file={}", text(&scratch, "marks/cut")));
    assert!(answer.contains("first") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    bridge.stop();
}

#[test]
fn a_server_that_accepts_nothing_is_given_up_within_the_limit() {
    let scratch = Scratch::new();
    let socket = scratch.path("full.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // Room for one connection, which is taken.
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let bridge = Bridge::start(&[PORT, &format!("fastcgi:{}", socket.display()), "--connect-timeout", "200ms"]);
    let answer = bridge.get("/");
    assert!(matches!(status(&answer), 502 | 504), "{answer}");
    bridge.stop();
}

#[test]
fn requests_share_a_connection_when_both_sides_want_that() {
    let scratch = Scratch::new();
    let socket = scratch.path("app.sock");
    let announcing = [("GATESPAN_FASTCGI_MULTIPLEX", "1")];
    let _server = scratch.application(&Listening::Unix(socket.clone()), &announcing);
    let to = format!("fastcgi:{}", socket.display());
    let connections = |options: &[&str]| {
        let bridge = Bridge::start(&[&[PORT, &to], options].concat());
        let seen = std::thread::scope(|scope| {
            let ask = || variable(&bridge.body("/connection?ms=1500"), "connection").unwrap();
            let first = scope.spawn(ask);
            [ask(), first.join().unwrap()]
        });
        bridge.stop();
        seen
    };
    let [first, second] = connections(&["--multiplex", "8"]);
    assert_eq!(first, second);
    let [first, second] = connections(&[]);
    assert_ne!(first, second);
}

#[test]
fn what_a_server_says_on_stderr_is_logged() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let bridge = Bridge::start(&[PORT, &to]);
    assert_eq!(bridge.body("/stderr?text=told-so"), "logged\n");
    bridge.log.line("told-so");
    bridge.stop();
}

#[test]
fn bodies_without_a_length_are_spooled_within_limits_or_streamed() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let chunked = "POST /environ HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let bridge = Bridge::start(&[PORT, &to]);
    assert_eq!(variable(&body(&bridge.ask(chunked)), "CONTENT_LENGTH").as_deref(), Some("3"));
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &to, "--request-body", "stream"]);
    let page = body(&bridge.ask(chunked));
    assert_eq!(variable(&page, "CONTENT_LENGTH").unwrap_or_default(), "");
    assert!(page.contains("3 ba7816bf"), "{page}");
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &to, "--spool-limit", "2"]);
    assert_eq!(status(&bridge.ask(chunked)), 413);
    bridge.stop();
}

#[test]
fn params_of_ones_own_stand_in_the_place_of_the_request_s() {
    let scratch = Scratch::new();
    let (_server, to) = application(&scratch);
    let bridge =
        Bridge::start(&[PORT, &to, "--param", "APP_ENV=a b=c", "--param", "SERVER_NAME=own", "--param", "EMPTY="]);
    let page = body(&get_with(&bridge, "/environ", "App-Env: other\r\n"));
    for (name, value) in [("APP_ENV", "a b=c"), ("SERVER_NAME", "own"), ("EMPTY", "")] {
        assert_eq!(variable(&page, name).as_deref(), Some(value), "{name} in {page}");
    }
    bridge.stop();
    let (scratch, _fpm) = php("flat");
    let (to, root) = (format!("fastcgi:{}", text(&scratch, "php.sock")), text(&scratch, "htdocs"));
    let bridge = Bridge::start(&[PORT, &to, "--root", &root, "--param", "DOCUMENT_ROOT=/elsewhere"]);
    assert_eq!(variable(&bridge.body("/info.php"), "DOCUMENT_ROOT").as_deref(), Some("/elsewhere"));
    bridge.stop();
}

#[test]
fn an_authorizer_s_verdict_may_be_the_answer() {
    let scratch = Scratch::new();
    let to = format!("fastcgi:exec:{}", scratch.program("authorizer", "authorizer").display());
    let bridge = Bridge::start(&[PORT, &to, "--workers", "1", "--role", "authorizer"]);
    assert_eq!(status(&bridge.get("/")), 401);
    let verdict = get_with(&bridge, "/", "X-Token: swordfish\r\n");
    assert_eq!((status(&verdict), header(&verdict, "Variable-AUTH_NAME")), (200, Some("alice")), "{verdict}");
    // Its body is nobody's business.
    let upload =
        "POST / HTTP/1.1\r\nHost: h\r\nX-Token: swordfish\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(status(&bridge.ask(upload)), 200);
    bridge.stop();
    // As a responder it greets.
    let bridge = Bridge::start(&[PORT, &to, "--workers", "1", "--role", "responder"]);
    assert_eq!(bridge.body("/"), "Hello, stranger!\n");
    bridge.stop();
    // Whoever is asked before others is asked as an authorizer all the same.
    let (_server, app) = application(&scratch);
    let options = ["--authorizer", &to, "--workers", "1", "--role", "responder"];
    let bridge = Bridge::start(&[&[PORT, &app], &options[..]].concat());
    assert_eq!(status(&bridge.get("/environ")), 401);
    bridge.stop();
}

#[test]
fn a_filter_gets_the_files_of_its_site() {
    let scratch = Scratch::new();
    let to = format!("fastcgi:exec:{}", scratch.libfcgi().display());
    let site = scratch.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("a.txt"), "the file").unwrap();
    let long = "x".repeat(300_000);
    fs::write(site.join("long.txt"), &long).unwrap();
    let root = site.display().to_string();
    let options = ["--root", &root, "--script-ending", ".txt", "--role", "filter", "--workers", "1"];
    let bridge = Bridge::start(&[&[PORT, &to], &options[..]].concat());
    assert_eq!(bridge.body("/a.txt"), "0 8\nTHE FILE");
    assert_eq!(bridge.body("/long.txt"), format!("0 300000\n{}", long.to_uppercase()));
    let upload = "POST /a.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(body(&bridge.ask(upload)), "3 8\nTHE FILE");
    assert_eq!(status(&bridge.get("/missing.txt")), 404);
    bridge.stop();
}

// FastCGI programs.

#[test]
fn a_program_is_started_renewed_and_ended() {
    let scratch = Scratch::new();
    let to = format!("fastcgi:exec:{}", text(&scratch, "cgi-bin/app"));
    let bridge = Bridge::start(&[PORT, &to, "--workers", "1", "--max-requests", "2", "--env", "FROM_THE_BRIDGE=1"]);
    let process = || variable(&bridge.body("/connection"), "connection").unwrap().split('/').next().unwrap().to_owned();
    let seen: Vec<_> = (0..4).map(|_| process()).collect();
    assert!(seen[0] == seen[1] && seen[1] != seen[2] && seen[2] == seen[3], "{seen:?}");
    let last = seen[3].clone();
    bridge.stop();
    assert!(!Path::new("/proc").join(&last).exists(), "process {last} is left");
}

#[test]
fn a_program_that_dies_is_started_again() {
    let scratch = Scratch::new();
    let to = format!("fastcgi:exec:{}", text(&scratch, "cgi-bin/app"));
    let bridge = Bridge::start(&[PORT, &to, "--workers", "1"]);
    let process = || variable(&bridge.body("/connection"), "connection").unwrap().split('/').next().unwrap().to_owned();
    let first = process();
    let pid = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    bridge.log.line("the program ended by itself");
    assert_ne!(process(), first);
    bridge.stop();
}

#[test]
fn a_second_signal_leaves_no_program_running() {
    let scratch = Scratch::new();
    let to = format!("fastcgi:exec:{}", text(&scratch, "cgi-bin/app"));
    let mut bridge = Bridge::start(&[PORT, &to, "--workers", "1"]);
    let page = bridge.body("/connection");
    let process = variable(&page, "connection").unwrap().split('/').next().unwrap().to_owned();
    let mut running = TcpStream::connect(&bridge.place).unwrap();
    let mark = text(&scratch, "marks/running");
    running.write_all(format!("GET /linger?tick=1&file={mark} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(running.read(&mut [0; 12]).unwrap(), 12);
    bridge.signal(rustix::process::Signal::TERM);
    bridge.log.line("stopping");
    assert!(Path::new("/proc").join(&process).exists());
    bridge.signal(rustix::process::Signal::TERM);
    assert_eq!(bridge.end(), Some(143));
    assert!(!Path::new("/proc").join(&process).exists(), "process {process} is left");
}

#[test]
fn a_bridge_that_is_killed_leaves_no_program_running() {
    let scratch = Scratch::new();
    let to = format!("fastcgi:exec:{}", text(&scratch, "cgi-bin/app"));
    let mut bridge = Bridge::start(&[PORT, &to, "--workers", "3", "--max-requests", "1"]);
    let process = || variable(&bridge.body("/connection"), "connection").unwrap().split('/').next().unwrap().to_owned();
    let renewed = process();
    let programs = || -> Vec<String> {
        let all =
            fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap_or_default());
        let is_one = |pid: &String| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == scratch.path("cgi-bin/app"))
        };
        all.filter(is_one).collect()
    };
    let began = std::time::Instant::now();
    while programs().contains(&renewed) || programs().len() < 3 {
        assert!(began.elapsed() < tool::SOON, "three of them run, and the one that was renewed is gone");
    }
    bridge.signal(rustix::process::Signal::KILL);
    assert_eq!(bridge.end(), None);
    while !programs().is_empty() {
        assert!(began.elapsed() < 2 * tool::SOON, "{:?} are left", programs());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

// HTTP servers and folders.

#[test]
fn an_http_server_is_told_of_the_client_as_options_say() {
    let behind = Bridge::start(&[PORT, "app:environ"]);
    let to = format!("http://{}", behind.place);
    let page = |options: &[&str], lines: &str| {
        let bridge = Bridge::start(&[&[PORT, &to], options].concat());
        let page = body(&get_with(&bridge, "/a/b?c", lines));
        bridge.stop();
        page
    };
    let claim = "X-Forwarded-For: 192.0.2.1\r\n";
    let plain = page(&[], claim);
    assert_eq!(variable(&plain, "HTTP_X_FORWARDED_FOR").as_deref(), Some("127.0.0.1"));
    assert_eq!(variable(&plain, "HTTP_HOST").as_deref(), Some("localhost"));
    assert_eq!(variable(&plain, "PATH_INFO").as_deref(), Some("/a/b"));
    let trusted = page(&["--trusted-proxy", "127.0.0.0/8"], claim);
    assert_eq!(variable(&trusted, "HTTP_X_FORWARDED_FOR").as_deref(), Some("192.0.2.1, 127.0.0.1"));
    assert_eq!(variable(&page(&["--forwarded", "off"], ""), "HTTP_X_FORWARDED_FOR"), None);
    let forwarded = page(&["--forwarded", "forwarded"], "");
    assert!(variable(&forwarded, "HTTP_FORWARDED").unwrap().starts_with("for=127.0.0.1;proto=http"), "{forwarded}");
    assert_eq!(variable(&page(&["--host", "target"], ""), "HTTP_HOST"), Some(behind.place.clone()));
    assert_eq!(variable(&page(&["--host", "shop.test"], ""), "HTTP_HOST").as_deref(), Some("shop.test"));
    let rest = page(&["--script-name", "/a", "--path", "rest"], "");
    assert_eq!(variable(&rest, "PATH_INFO").as_deref(), Some("/b"));
    behind.stop();
}

#[test]
fn an_http_server_on_a_unix_socket_is_reached_from_fastcgi_and_http() {
    let scratch = Scratch::new();
    let socket = format!("http:{}", text(&scratch, "http.sock"));
    let behind = Bridge::start(&[&socket, "app:echo"]);
    let bridge = Bridge::start(&[PORT, &socket]);
    let request = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(body(&bridge.ask(request)), "abc");
    bridge.stop();
    behind.stop();
    let bridge = Bridge::start(&[PORT, &socket]);
    assert_eq!(status(&bridge.get("/")), 502);
    bridge.stop();
}

#[test]
fn a_folder_is_served_with_index_and_by_option_listed() {
    let scratch = Scratch::new();
    scratch.write("htdocs/a.txt", "a\n");
    scratch.write("htdocs/a.txt.gz", "packed");
    scratch.write("htdocs/.hidden", "never\n");
    let to = format!("file:{}", text(&scratch, "htdocs"));
    let bridge = Bridge::start(&[PORT, &to]);
    assert_eq!(bridge.body("/a.txt"), "a\n");
    assert_eq!((status(&bridge.get("/.hidden")), status(&bridge.get("/"))), (404, 404));
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &to, "--listing", "--precompressed", "gzip"]);
    assert!(bridge.body("/").contains("a.txt") && !bridge.body("/").contains(".hidden"));
    assert_eq!(body(&get_with(&bridge, "/a.txt", "Accept-Encoding: gzip\r\n")), "packed");
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &to, "--index", "a.txt"]);
    assert_eq!(bridge.body("/"), "a\n");
    bridge.stop();
    std::os::unix::fs::symlink("/etc/hostname", scratch.path("htdocs/out")).unwrap();
    let bridge = Bridge::start(&[PORT, "app:hello", "--route", &format!("/f={to}")]);
    assert_eq!((status(&bridge.get("/f/a.txt")), status(&bridge.get("/f/out"))), (200, 404));
    bridge.stop();
    let bridge = Bridge::start(&[PORT, &to, "--follow-links"]);
    assert_eq!(status(&bridge.get("/out")), 200);
    bridge.stop();
}

// Who the client is, and what it may.

#[test]
fn an_authorizer_is_asked_first_everywhere_or_before_a_route() {
    let scratch = Scratch::new();
    let asked = format!("fastcgi:exec:{}", scratch.program("authorizer", "authorizer").display());
    let bridge = Bridge::start(&[PORT, "app:environ", "--authorizer", &asked, "--workers", "1"]);
    assert_eq!(status(&bridge.get("/")), 401);
    let page = body(&get_with(&bridge, "/", "X-Token: swordfish\r\n"));
    assert_eq!(variable(&page, "AUTH_NAME").as_deref(), Some("alice"), "{page}");
    bridge.stop();
    let asked = format!("/in={asked}");
    let bridge =
        Bridge::start(&[PORT, "app:hello", "--route", "/in=app:environ", "--authorizer", &asked, "--workers", "1"]);
    assert_eq!((status(&bridge.get("/")), status(&bridge.get("/in/x")), status(&bridge.get("/in"))), (200, 401, 401));
    assert_eq!(status(&get_with(&bridge, "/in/x", "X-Token: swordfish\r\n")), 200);
    bridge.stop();
}

#[test]
fn an_authorizer_that_is_gone_lets_nobody_in() {
    let bridge = Bridge::start(&[PORT, "app:hello", "--authorizer", "fastcgi:/no/such.sock"]);
    assert_eq!(status(&bridge.get("/")), 502);
    bridge.stop();
}

#[test]
fn an_authorizer_has_a_time_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = format!("fastcgi://{}", silent.local_addr().unwrap());
    let bridge = Bridge::start(&[PORT, "app:hello", "--authorizer", &asked, "--authorizer-timeout", "200ms"]);
    assert_eq!(status(&bridge.get("/")), 504);
    bridge.log.line("no verdict within 200ms");
    bridge.stop();
}

#[test]
fn the_client_is_whom_a_trusted_proxy_names_and_nobody_else() {
    let client = |options: &[&str], lines: &str| {
        let bridge = Bridge::start(&[&[PORT, "app:environ", "--access-log", "-"], options].concat());
        let page = body(&get_with(&bridge, "/", lines));
        bridge.stop();
        (variable(&page, "REMOTE_ADDR").unwrap(), variable(&page, "HTTPS"))
    };
    let lines = "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 192.0.2.8\r\nForwarded: for=192.0.2.7\r\n";
    let address = |options: &[&str]| client(options, lines).0;
    assert_eq!(address(&[]), "127.0.0.1");
    let trusted = ["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "127.0.0.1", "--resolve-client"];
    assert_eq!(address(&[&trusted[..], &["x-forwarded-for"]].concat()), "192.0.2.9");
    assert_eq!(client(&[&trusted[..], &["x-forwarded-for"]].concat(), lines).1.as_deref(), Some("on"));
    assert_eq!(address(&[&trusted[..], &["X-Real-IP"]].concat()), "192.0.2.8");
    assert_eq!(address(&[&trusted[..], &["forwarded"]].concat()), "192.0.2.7");
    assert_eq!(address(&["--trusted-proxy", "10.0.0.1", "--resolve-client", "x-forwarded-for"]), "127.0.0.1");
}

// Servers that answer badly.

/// What a bad server does with a connection, once it has read what came at first.
type Manner = fn(TcpStream);

fn says(mut stream: TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    // Until the other side has seen enough of it.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A server that behaves so on each connection, for as long as the test runs.
fn bad_server(manner: Manner) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 65_536]);
                manner(stream);
            });
        }
    });
    address
}

#[test]
fn each_way_of_answering_badly_has_its_status_and_a_line_under_the_request_s_id() {
    let refused = free_address();
    let silent: Manner = |stream| says(stream, b"");
    let garbage: Manner = |stream| says(stream, b"\x00\xff this is nothing that anybody would understand\r\n\r\n");
    let half_closed: Manner = |mut stream| {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    };
    // A byte in a while, and never a whole head.
    let slow: Manner = |mut stream| {
        while stream.write_all(b"H").is_ok() && stream.flush().is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let slow_records: Manner = |mut stream| {
        while stream.write_all(b"\x01\x06\0\x01\0\x01\0\0X").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let oversized: Manner =
        |stream| says(stream, format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let oversized_records: Manner = |stream| {
        let mut answer = Vec::new();
        for _ in 0..20 {
            answer.extend_from_slice(b"\x01\x06\0\x01\xff\xff\0\0");
            answer.extend_from_slice(&[b'x'; 0xffff]);
        }
        says(stream, &answer);
    };
    let served = |manner: Manner| bad_server(manner).to_string();
    let table = [
        ("fastcgi", refused.to_string(), 502, "refused"),
        ("fastcgi", served(silent), 504, "within 400ms"),
        ("fastcgi", served(slow_records), 504, "within 1s"),
        ("fastcgi", served(garbage), 502, "expected FastCGI records"),
        ("fastcgi", served(half_closed), 502, "got the end of the connection after 0 bytes"),
        ("fastcgi", served(oversized_records), 502, "expected the head of an answer"),
        ("http", refused.to_string(), 502, "refused"),
        ("http", served(silent), 504, "has not begun its answer within 400ms"),
        ("http", served(slow), 504, "within"),
        ("http", served(garbage), 502, "expected the head of an HTTP answer"),
        ("http", served(half_closed), 502, "closed the connection before the head"),
        ("http", served(oversized), 502, "expected the head of an HTTP answer"),
    ];
    std::thread::scope(|scope| {
        for (number, (scheme, address, expected, cause)) in table.into_iter().enumerate() {
            scope.spawn(move || {
                let to = format!("{scheme}://{address}");
                let bridge = Bridge::start(&[PORT, &to, "--head-timeout", "400ms", "--timeout", "1s"]);
                let id = format!("bad-{number}");
                let answer = get_with(&bridge, "/", &format!("X-Request-Id: {id}\r\n"));
                assert_eq!(status(&answer), expected, "{number} {to}: {answer}");
                assert!(body(&answer).contains(&id), "{number} {to}: {answer}");
                bridge.log.line(cause);
                bridge.signal(rustix::process::Signal::TERM);
                let lines = bridge.log.lines();
                assert!(
                    lines.iter().any(|line| line.contains(&id) && line.contains(cause)),
                    "{number} {to}: {lines:#?}"
                );
                assert!(!lines.iter().any(|line| line.contains("panicked")), "{number} {to}: {lines:#?}");
            });
        }
    });
}

// The command line.

#[test]
fn options_without_effect_are_exit_code_2() {
    for (arguments, expected) in [
        (&["app:hello", "--timeout", "3s"][..], "--timeout is for cgi:, fastcgi:"),
        (&["app:hello", "--root", "/"], "--root is for"),
        (&["file:/", "--try-files", "$uri"], "--try-files is for fastcgi: with --root"),
        (&["fastcgi:/a", "--deny", "x"], "--deny is for fastcgi: with --root"),
        (&["fastcgi:/a", "--root", "/", "--root", "/srv"], "--root can't be repeated"),
        (&["fastcgi:/a", "--forwarded", "off"], "--forwarded is for http:"),
        (&["fastcgi:/a", "--workers", "2"], "--workers is for fastcgi:exec:"),
        (&["fastcgi:exec:/a", "--multiplex", "2"], "--multiplex is for fastcgi:"),
        (&["http://localhost", "--ca-file", "/a"], "--ca-file is for https:"),
        (&["http://localhost", "--spool-limit", "1"], "--spool-limit is for cgi:, fastcgi:"),
        (&["http://localhost", "--also", "fastcgi:/a"], "--also is for"),
        (&["fastcgi:/a", "--also", "http://localhost"], "a further FastCGI server"),
        (&["fastcgi:/a", "--keep-alive", "off", "--pool-size", "3"], "has no effect"),
        (&["app:hello", "--resolve-client", "forwarded"], "--trusted-proxy"),
        (&["app:hello", "--trusted-proxy", "::1"], "--trusted-proxy without --resolve-client"),
        (&["app:hello", "--authorizer", "/in=fastcgi:/a"], "prefix of a --route"),
        (&["app:hello", "--authorizer-timeout", "3s"], "--authorizer"),
        (&["app:hello", "--authorizer", "fastcgi:/a", "--role", "responder"], "as TO or in a --route"),
        (&["http://localhost", "--param", "A=b"], "--param is for fastcgi:"),
        (&["fastcgi:/a", "--param", "A"], "expected NAME=VALUE"),
        (&["fastcgi:/a", "--role", "filter"], "with --root, whose files are filtered"),
        (&["fastcgi:/a", "--root", "/blog=/srv"], "there is no --route /blog=…"),
        (&["fastcgi:fd"], "is one to listen on"),
        (&["http://localhost:0"], "the port that a server listens on"),
        (&["fastcgi:/a", "--root", "/", "--try-files", "=404 $uri"], "expected a status as the last"),
        (&["fastcgi:/a", "--root", "/", "--script-ending", "php"], "such as .php"),
    ] {
        let output = tool::tool(&[&["bridge", PORT], arguments].concat()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    let output = tool::tool(&["bridge", "cgi:", "fastcgi:exec:/bin/true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("start it once"));
}

#[test]
fn what_can_not_be_forwarded_to_is_exit_code_1() {
    for (arguments, expected) in [
        (&["file:/no/such/folder"][..], "/no/such/folder"),
        (&["fastcgi:/a", "--root", "/no/such/folder"], "/no/such/folder"),
        (&["fastcgi:exec:/no/such/program"], "/no/such/program"),
        (&["https://localhost", "--ca-file", "/no/such/file"], "/no/such/file"),
    ] {
        let output = tool::tool(&[&["bridge", PORT], arguments].concat()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
}
