//! What has gone wrong in public with CGI programs and those who start them: each by its name, tried with real scripts.
#![cfg(all(feature = "upstream-cgi", feature = "http", feature = "fastcgi"))]

#[path = "support/client.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod client;
#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;
#[path = "support/pattern.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod pattern;
#[path = "support/site.rs"]
mod site;

use std::sync::Arc;

use client::Upload;
use gatespan::address::Endpoint;
use gatespan::application::Peer;
use gatespan::gateway::listener::{ListenOptions, Listener};
use gatespan::gateway::{fastcgi, http};
use gatespan::protocol::fastcgi::Role;
use gatespan::upstream::cgi::{Config, ConfigError, Host};
use site::{Answer, Site, ask, get, logged, request};
use tokio_util::sync::CancellationToken;

/// Prints its environment, a variable a line.
const ENVIRONMENT: &str = "printf 'Content-Type: text/plain\\n\\n'; exec env";

/// What a script prints that was asked for with these header fields, over HTTP.
async fn over_http(host: Arc<Host>, target: &str, fields: &[(&str, &str)]) -> String {
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&endpoint, &ListenOptions::default()).await.unwrap();
    let address = listener.tcp_address().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(http::serve(listener, host, http::Config::default(), stop.clone().cancelled_owned()));
    let mut client = client::Client::connect(address).await.unwrap();
    let answer = client.send("GET", target, fields, Upload::Nothing).await.unwrap();
    drop(client);
    stop.cancel();
    served.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// What scripts print that were asked for with these params, one after the other on one connection.
async fn over_fastcgi(host: Arc<Host>, requests: &[&[(&str, &str)]]) -> Vec<String> {
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    let gateway = Arc::new(fastcgi::Gateway::new(host, fastcgi::Config::default()));
    tokio::spawn(
        async move { fastcgi::serve_connection(ours, Peer::Unknown, &gateway, &CancellationToken::new()).await },
    );
    let mut client = fastcgi_client::Client::new(theirs);
    let mut answers = Vec::new();
    for params in requests {
        let id = client.begin(Role::Responder, true, params);
        client.end.end_stdin(id);
        let answer = client.answer(id).await;
        assert!(answer.is_complete(), "{answer:?}");
        answers.push(String::from_utf8_lossy(answer.body()).into_owned());
    }
    answers
}

/// The values that a variable has in an environment that was printed.
fn values<'a>(printed: &'a str, name: &str) -> Vec<&'a str> {
    printed.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[tokio::test]
async fn httpoxy_cve_2016_5385_no_script_has_http_proxy() {
    let site = Site::of(ENVIRONMENT);
    let host = site.host(|config| config.pass_environment = vec!["HTTP_*".into()]);
    for name in ["Proxy", "PROXY", "pRoXy"] {
        let printed = over_http(host.clone(), "/script", &[(name, "http://evil/"), ("X-Other", "1")]).await;
        assert_eq!((values(&printed, "HTTP_PROXY").len(), values(&printed, "HTTP_X_OTHER").len()), (0, 1), "{printed}");
    }
    let params = [("REQUEST_METHOD", "GET"), ("PATH_INFO", "/script"), ("HTTP_PROXY", "http://evil/")];
    let printed = over_fastcgi(host, &[&params]).await;
    assert!(!printed[0].contains("evil") && printed[0].contains("PATH="), "{}", printed[0]);
}

#[tokio::test]
async fn header_aliases_a_field_with_an_underscore_is_none() {
    let site = Site::of(ENVIRONMENT);
    let host = site.host(|_| {});
    let (good, evil) = (("Remote-User", "good"), ("Remote_User", "evil"));
    for fields in [&[good, evil][..], &[evil, good], &[evil, good, evil], &[evil]] {
        let printed = over_http(host.clone(), "/script", fields).await;
        let expected: &[&str] = if fields.contains(&good) { &["good"] } else { &[] };
        assert_eq!(values(&printed, "HTTP_REMOTE_USER"), expected, "{fields:?}");
        assert!(!printed.contains("evil"), "{printed}");
    }
}

#[tokio::test]
async fn cve_2018_1283_cve_2025_65082_no_field_replaces_a_variable_of_the_server() {
    let site = Site::of(ENVIRONMENT);
    let host = site.host(|config| config.environment = vec![("SETTING".into(), "mine".into())]);
    let names = ["Remote-Addr", "Script-Filename", "Content-Length", "Setting", "Path", "Session", "Gateway-Interface"];
    let fields: Vec<_> = names.iter().filter(|name| **name != "Content-Length").map(|name| (*name, "evil")).collect();
    let printed = over_http(host.clone(), "/script", &fields).await;
    for line in printed.lines().filter(|line| line.contains("evil")) {
        assert!(line.starts_with("HTTP_"), "{line}");
    }
    assert_eq!((values(&printed, "REMOTE_ADDR"), values(&printed, "SETTING")), (vec!["127.0.0.1"], vec!["mine"]));
    let script = site.path("cgi-bin/script").display().to_string();
    assert_eq!(values(&printed, "SCRIPT_FILENAME"), [script]);
    // What a web server sends beside the real ones, and what is known better here.
    let params = [
        ("REQUEST_METHOD", "GET"),
        ("PATH_INFO", "/script"),
        ("HTTP_CONTENT_LENGTH", "99"),
        ("HTTP_CONTENT_TYPE", "evil/type"),
        ("GATEWAY_INTERFACE", "evil"),
        ("SETTING", "evil"),
        ("SETTING", "evil twice"),
    ];
    let printed = &over_fastcgi(host, &[&params]).await[0];
    assert!(!printed.contains("evil") && !printed.contains("99"), "{printed}");
    assert_eq!((values(printed, "SETTING"), values(printed, "GATEWAY_INTERFACE")), (vec!["mine"], vec!["CGI/1.1"]));
}

#[tokio::test]
async fn cve_2014_6271_nothing_passes_through_a_shell() {
    let site = Site::new();
    let mark = site.path("marks/mark");
    let touch = format!("touch {}", mark.display());
    // Names that a shell would take apart, and a value that old shells executed.
    for name in ["a;b", "a$(b)", "a`b`", "a b", "a&b", "a|b", "a>b", "a'b\"c", "-a", "a\nb"] {
        site.script(name, "#!/bin/bash\nprintf 'Content-Type: text/plain\\n\\n%s|%s' \"$0\" \"$HTTP_USER_AGENT\"");
        let mut environ = get(&format!("/{name}/$({touch})"));
        let function = format!("() {{ :; }}; {touch}");
        environ.set("HTTP_USER_AGENT", &function).unwrap();
        environ.set("QUERY_STRING", format!("`{touch}`")).unwrap();
        let answer = ask(site.host(|config| config.isindex = true), environ).await;
        let file = site.path("cgi-bin").join(name).display().to_string();
        assert_eq!((answer.status, answer.body), (200, format!("{file}|{function}")));
    }
    assert!(!mark.exists());
}

#[tokio::test]
async fn cve_2012_1823_cve_2024_4577_cve_2025_58098_no_query_becomes_an_option() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n%s' \"$*\"");
    site.script("page.php", "#!/usr/bin/php-cgi\n<?php echo 'fine'; /* secret */");
    for isindex in [false, true] {
        let host = site.host(|config| config.isindex = isindex);
        for query in ["-s", "%2ds", "%ADs", "%C2%ADs", "-d+allow_url_include%3d1", "a+-s", "%E2%80%90s", "--version"] {
            assert_eq!(ask(host.clone(), get(&format!("/script?{query}"))).await.body, "", "{query}");
            let answer = ask(host.clone(), get(&format!("/page.php?{query}"))).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "fine"), "{query}");
        }
    }
    assert_eq!(ask(site.host(|config| config.isindex = true), get("/script?a+b")).await.body, "a b");
}

#[tokio::test]
async fn cve_2019_11043_the_path_is_split_where_the_disk_says_whatever_it_holds() {
    let site = Site::of("printf 'Content-Type: text/plain\\n\\n%s|%s' \"$SCRIPT_NAME\" \"$PATH_INFO\"");
    let host = site.host(|_| {});
    let long = format!("/{}", "x".repeat(50_000));
    for rest in ["", "/", "/\n", "/a\nb.php", "/a\rb.php", "/%0a", "//", "/..", "/a.php/b.php", &long] {
        let answer = ask(host.clone(), get(&format!("/script{rest}"))).await;
        assert_eq!((answer.status, answer.body), (200, format!("/script|{rest}")));
    }
    // The same where a web server has glued the two.
    let file = site.path("cgi-bin/script").display().to_string();
    for rest in ["\n", "/a\nb", "/\r"] {
        let mut environ = request("GET", "");
        environ.set("SCRIPT_FILENAME", format!("{file}{rest}")).unwrap();
        environ.set("SCRIPT_NAME", format!("/script{rest}")).unwrap();
        let answer = ask(host.clone(), environ).await;
        match rest.strip_prefix('/') {
            Some(_) => assert_eq!((answer.status, answer.body), (200, format!("/script|{rest}"))),
            None => assert_eq!(answer.status, 403, "{answer:?}"),
        }
    }
}

#[tokio::test]
async fn cve_2026_24895_cve_2026_45062_names_are_bytes_and_only_regular_files_are_scripts() {
    let site = Site::new();
    // Each becomes `.kps` by Unicode's lower or upper case; in bytes none of them ends so, and none is executable.
    let interpreters = vec![(".kps".into(), "/bin/sh".into())];
    let host = site.host(|config| config.interpreters = interpreters);
    for name in ["a.\u{212a}ps", "a.kp\u{17f}", "a.KPS", "a.kps"] {
        site.shell(name, "printf 'Content-Type: text/plain\\n\\nrun'");
        let file = site.path("cgi-bin").join(name);
        std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let answer = ask(host.clone(), get(&format!("/{name}"))).await;
        assert_eq!(answer.status, if name == "a.kps" { 200 } else { 403 }, "{name}: {answer:?}");
    }
    // A folder called like a script does not split the path, and what is no file is none.
    std::fs::create_dir(site.path("cgi-bin/dir.kps")).unwrap();
    site.shell("dir.kps/inner", "printf 'Content-Type: text/plain\\n\\n%s' \"$SCRIPT_NAME\"");
    assert_eq!(ask(host.clone(), get("/dir.kps/inner")).await.body, "/dir.kps/inner");
    assert_eq!(ask(host.clone(), get("/dir.kps")).await.status, 403);
    let _socket = std::os::unix::net::UnixListener::bind(site.path("cgi-bin/socket.kps")).unwrap();
    assert_eq!(ask(host.clone(), get("/socket.kps")).await.status, 403);
    // NUL, in whichever variable the path is.
    for (name, value) in [("PATH_INFO", "/a.kps\0"), ("SCRIPT_FILENAME", "/a.kps\0.png"), ("SCRIPT_NAME", "/\0")] {
        let printed = over_fastcgi(host.clone(), &[&[("REQUEST_METHOD", "GET"), (name, value)]]).await;
        assert!(printed[0].starts_with("400 "), "{name}: {}", printed[0]);
    }
}

#[tokio::test]
async fn cve_2011_2766_a_script_sees_nothing_of_the_request_before() {
    let site = Site::of(ENVIRONMENT);
    let first = [
        ("REQUEST_METHOD", "GET"),
        ("PATH_INFO", "/script/rest"),
        ("QUERY_STRING", "secret"),
        ("HTTP_COOKIE", "secret"),
        ("REMOTE_USER", "secret"),
        ("HTTP_AUTHORIZATION", "Basic secret"),
    ];
    let printed =
        over_fastcgi(site.host(|_| {}), &[&first, &[("REQUEST_METHOD", "GET"), ("PATH_INFO", "/script")]]).await;
    assert_eq!(printed[0].matches("secret").count(), 4, "{}", printed[0]);
    assert!(!printed[1].contains("secret") && values(&printed[1], "PATH_INFO").is_empty(), "{}", printed[1]);
}

#[tokio::test]
async fn cve_2010_3872_cve_2013_4365_cve_2014_3583_a_long_head_is_whole_or_502() {
    let site = Site::new();
    let field = |len: usize| format!("printf 'X: '; head -c {len} /dev/zero | tr '\\0' a; printf '\\n\\nbody'");
    site.shell("long", &field(60_000));
    site.shell("longer", &field(70_000));
    let many = "i=0; while [ $i -lt 300 ]; do echo \"X-$i: $i\"; i=$((i+1)); done; printf '\\nbody'";
    site.shell("many", many);
    let host = site.host(|_| {});
    let answer = ask(host.clone(), get("/long")).await;
    assert_eq!((answer.status, answer.header("X").map(str::len), answer.body.as_str()), (200, Some(60_000), "body"));
    for name in ["/longer", "/many"] {
        let log = logged();
        assert_eq!(ask(host.clone(), get(name)).await.status, 502);
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    }
}

#[tokio::test]
async fn cve_2020_24553_no_type_is_guessed() {
    let site = Site::of("printf 'Status: 200\\n\\n<html><script>alert(1)</script>'");
    assert_eq!(ask(site.host(|_| {}), get("/script")).await.header("Content-Type"), Some("text/plain"));
}

#[tokio::test]
async fn cve_2023_38709_cve_2024_24795_cve_2024_42516_a_response_is_not_split() {
    for head in [
        "X: a\\rSet-Cookie: evil",
        "X: a\\000b",
        "X\\r: a",
        "X Y: a",
        ": a",
        "Status: 200 OK\\rX: evil",
        "Content-Length: 5\\nContent-Length: 6",
        "Content-Length: -1",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Transfer-Encoding: chunked",
        "transfer-encoding: identity",
        "Location: http://a/\\rSet-Cookie: evil",
    ] {
        let site = Site::of(&format!("printf 'Content-Type: text/plain\\n{head}\\n\\nbody\\n'"));
        let Answer { status, headers, .. } = ask(site.host(|_| {}), get("/script")).await;
        assert_eq!(status, 502, "{head}: {headers:?}");
        assert!(!format!("{headers:?}").contains("evil"), "{headers:?}");
    }
}

#[test]
fn cve_2014_0185_scripts_lie_in_a_folder_that_was_named_and_that_others_can_not_write_to() {
    assert!(matches!(Host::new(Config::default()), Err(ConfigError::Nothing)));
    let site = Site::new();
    std::fs::set_permissions(site.path("cgi-bin"), std::os::unix::fs::PermissionsExt::from_mode(0o757)).unwrap();
    assert!(matches!(Host::new(site.config()), Err(ConfigError::Writable { .. })));
}
