//! nginx, Apache and lighttpd in front of the tool, which is the FastCGI server that they know, or the CGI program that they start, with the application or
//! a folder behind it: what holds for the application behind a web server holds for it behind the bridge as well, by the same table of requests.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::client::{Client, Upload, get};
use support::process::{Listening, Scratch, Server, free_address, program};
use support::{Front, scripts, table};

/// The bridge, with something behind it, and in front what `web_server` starts for its socket.
fn bridged(
    name: &'static str,
    to: impl FnOnce(&Scratch) -> (Option<Server>, String),
    web_server: fn(&Scratch) -> (Server, std::net::SocketAddr),
) -> Front {
    let scratch = Scratch::new();
    let (behind, to) = to(&scratch);
    let socket = scratch.path("front.sock");
    let command = scripts::bridge(&format!("fastcgi:{}", socket.display()), &to, &[]);
    let bridge = Server::start(&scratch, "bridge", command, &[]).ready_at(&socket);
    // The web servers' workers are not root.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("a socket's mode can be set");
    let (web_server, address) = web_server(&scratch);
    let servers = [Some(web_server), Some(bridge), behind].into_iter().flatten().collect();
    Front { name, address, servers, scratch }
}

fn nginx(scratch: &Scratch) -> (Server, std::net::SocketAddr) {
    let address = free_address();
    let values = [
        ("PORT", &*address.port().to_string()),
        ("ADDRESS", &format!("unix:{}", scratch.path("front.sock").display())),
        ("REQUEST_BUFFERING", "off"),
        ("BUFFERING", "off"),
    ];
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(scratch.configuration("nginx/kept.conf", &values)).arg("-e").arg("stderr");
    (Server::start(scratch, "nginx", command, &[]).ready_on(address), address)
}

fn apache(scratch: &Scratch) -> (Server, std::net::SocketAddr) {
    let address = free_address();
    let upstream = format!("unix:{}|fcgi://localhost", scratch.path("front.sock").display());
    let values = [("PORT", &*address.port().to_string()), ("ADDRESS", &*upstream), ("REUSE", "on")];
    let mut command = program("/usr/sbin/apache2", "apache2");
    command.arg("-f").arg(scratch.configuration("apache/proxy_fcgi.conf", &values)).arg("-DFOREGROUND");
    (Server::start(scratch, "apache", command, &["error.log"]).ready_on(address), address)
}

fn lighttpd(scratch: &Scratch) -> (Server, std::net::SocketAddr) {
    let address = free_address();
    let socket = scratch.path("front.sock").display().to_string();
    let values = [("PORT", &*address.port().to_string()), ("SOCKET", &*socket), ("STREAM", "2")];
    let mut command = program("/usr/sbin/lighttpd", "lighttpd");
    command.arg("-D").arg("-f").arg(scratch.configuration("lighttpd/bridge.conf", &values));
    (Server::start(scratch, "lighttpd", command, &["error.log"]).ready_on(address), address)
}

fn to_fastcgi(scratch: &Scratch) -> (Option<Server>, String) {
    let socket = scratch.path("app.sock");
    (Some(scratch.application(&Listening::Unix(socket.clone()), &[])), format!("fastcgi:{}", socket.display()))
}

fn to_http(scratch: &Scratch) -> (Option<Server>, String) {
    let address = free_address();
    (Some(scratch.application(&Listening::Http(address), &[])), format!("http://{address}"))
}

/// The folder is what is below the application's place.
fn to_folder(scratch: &Scratch) -> (Option<Server>, String) {
    scratch.write("htdocs/file.txt", "0123456789\n");
    scratch.write("htdocs/index.html", "<p>index</p>\n");
    scratch.write("htdocs/.hidden", "never\n");
    fs::File::create(scratch.path("htdocs/large.bin"))
        .and_then(|file| file.set_len(50_000_000))
        .expect("a file can be made");
    (None, format!("file:{}", scratch.path("htdocs").display()))
}

/// What makes sense where another process answers: the rest is about the connection that the web server has to the application.
async fn everything(front: &Front) {
    table::rows(front).await;
    table::echo(front).await;
    table::log(front).await;
    table::events(front).await;
    table::leaving(front).await;
    table::at_once(front, 200).await;
    table::unread(front).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_to_fastcgi() {
    everything(&bridged("nginx/bridge/kept/fastcgi", to_fastcgi, nginx)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_to_http() {
    everything(&bridged("nginx/bridge/kept/http", to_http, nginx)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_to_fastcgi() {
    everything(&bridged("apache/proxy_fcgi/bridge/fastcgi", to_fastcgi, apache)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_to_http() {
    everything(&bridged("apache/proxy_fcgi/bridge/http", to_http, apache)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lighttpd_to_fastcgi() {
    everything(&bridged("lighttpd/bridge/streamed/fastcgi", to_fastcgi, lighttpd)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lighttpd_to_http() {
    everything(&bridged("lighttpd/bridge/streamed/http", to_http, lighttpd)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_the_same_behind_every_web_server() {
    for (name, web_server) in [("nginx", nginx as fn(&Scratch) -> _), ("apache", apache), ("lighttpd", lighttpd)] {
        let front = bridged(name, to_folder, web_server);
        let file = get(front.address, "/app/file.txt").await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((file.status, &*file.text(), file.cut.clone()), (200, "0123456789\n", None), "{name}");
        assert_eq!(file.values("Content-Type"), ["text/plain; charset=utf-8"], "{name}");
        let (tag, length) = (file.values("ETag").concat(), file.values("Content-Length"));
        assert_eq!(length, ["11"], "{name}");
        let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
            let mut client = Client::connect(front.address).await.expect("the web server accepts connections");
            let answer = client.send(method, path, headers, Upload::Nothing).await;
            answer.unwrap_or_else(|error| panic!("{name}: {method} {path}: {error}"))
        };
        let part = ask("GET", "/app/file.txt", &[("Range", "bytes=2-4")]).await;
        assert_eq!((part.status, &*part.text()), (206, "234"), "{name}");
        assert_eq!(part.values("Content-Range"), ["bytes 2-4/11"], "{name}");
        let known = ask("GET", "/app/file.txt", &[("If-None-Match", &tag)]).await;
        assert_eq!((known.status, known.length), (304, 0), "{name}");
        let head = ask("HEAD", "/app/large.bin", &[]).await;
        assert_eq!(
            (head.status, head.values("Content-Length"), head.length),
            (200, vec!["50000000".into()], 0),
            "{name}"
        );
        let large = ask("GET", "/app/large.bin", &[]).await;
        assert_eq!((large.status, large.length, large.cut), (200, 50_000_000, None), "{name}");
        assert_eq!(ask("GET", "/app/", &[]).await.text(), "<p>index</p>\n", "{name}");
        for (path, status) in [("/app/none", 404), ("/app/.hidden", 404), ("/app/..%2f..%2fcgi-bin/app", 404)] {
            let came = ask("GET", path, &[]).await.status;
            // A web server may refuse such a path itself.
            assert!(came == status || (path.contains('%') && came == 400), "{name}: {path}: {came}");
        }
        let posted = ask("POST", "/app/file.txt", &[("Content-Length", "0")]).await;
        assert_eq!((posted.status, posted.values("Allow")), (405, vec!["GET, HEAD".into()]), "{name}");
    }
}

/// Puts a script in the application's place: anew, and not over what is there, which is the build's own.
fn replace(scratch: &Scratch, text: &str) {
    let path = scratch.path("cgi-bin/app");
    fs::remove_file(&path).expect("there is one");
    fs::write(&path, text).expect("a file can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file's mode can be set");
}

/// A CGI program of one line in the place of the application, which now is a FastCGI server behind it. Before, a program in its place tells what words a
/// web server appends.
async fn as_cgi(name: &'static str, fixture: &str, appends_words: bool) {
    let scratch = Scratch::new();
    let (application, to) = to_fastcgi(&scratch);
    let address = free_address();
    let values = [("PORT", &*address.port().to_string()), ("STREAM", "2")];
    let configuration = scratch.configuration(fixture, &values);
    let command = match fixture.split('/').next() {
        Some("apache") => {
            let mut command = program("/usr/sbin/apache2", "apache2");
            command.arg("-f").arg(configuration).arg("-DFOREGROUND");
            command
        }
        _ => {
            let mut command = program("/usr/sbin/lighttpd", "lighttpd");
            command.arg("-D").arg("-f").arg(configuration);
            command
        }
    };
    // The way to the build folder can be barred for the web servers' workers.
    let tool = scratch.path("gatespan");
    let built = scripts::bridge("", "", &[]).get_program().to_owned();
    fs::hard_link(&built, &tool).or_else(|_| fs::copy(&built, &tool).map(drop)).expect("the tool can be copied");
    replace(&scratch, "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'; for word; do echo \"<$word>\"; done\n");
    let web_server = Server::start(&scratch, "web server", command, &["error.log"]).ready_on(address);
    let front = Front { name, address, servers: vec![web_server, application.expect("it runs")], scratch };
    const WORDS: &str = "/app/environ?--help+-s+--route+/app%3Dapp:hello+--+app:hello";
    let words = get(address, WORDS).await.expect("an answer").text();
    assert_eq!(words.contains("<--help>\n"), appends_words, "{name}: {words}");

    let tool = front.scratch.path("gatespan");
    replace(&front.scratch, &format!("#!/usr/bin/env -S {} bridge cgi: {to}\n", tool.display()));
    for target in [WORDS, "/app/environ?-h", "/app/environ?--version", "/app/environ?%ADs", "/app/environ?a=-h"] {
        let answer = get(address, target).await.unwrap_or_else(|error| panic!("{name}: {target}: {error}"));
        assert_eq!((answer.status, &answer.cut), (200, &None), "{name}: {target}: {}", answer.text());
        let query = target.split_once('?').map(|(_, query)| query);
        assert_eq!(answer.line("QUERY_STRING").as_deref(), query, "{name}: {}", answer.text());
        assert_eq!(answer.line("SCRIPT_NAME").as_deref(), Some("/app"), "{name}: {}", answer.text());
    }
    table::rows(&front).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_cgid_starts_the_bridge_and_its_words_are_not_read() {
    as_cgi("apache/cgid/bridge", "apache/cgid.conf", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mod_cgi_starts_the_bridge_and_its_words_are_not_read() {
    as_cgi("lighttpd/cgi/streamed/bridge", "lighttpd/cgi.conf", false).await;
}
