//! A folder of files, asked for in every way there is: as an application, and byte by byte through the HTTP gateway.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use gatespan::application::driver::{Response, call};
use gatespan::application::{Frame, Variables};
use gatespan::gateway::http as gateway;
use gatespan::gateway::listener::Listener;
use gatespan::middleware::{Mount, validate};
use gatespan::upstream::files::{Coding, Config, Files, Links};
use gatespan::{Application, Environ};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod support;
use support::client::{Client, Upload};
use support::pattern;

/// A folder with a little of everything, and something outside it.
fn site() -> TempDir {
    let scratch = tempfile::tempdir().expect("a folder can be made");
    let at = |name: &str| scratch.path().join("site").join(name);
    fs::create_dir_all(at("folder/empty")).unwrap();
    fs::create_dir_all(at(".git")).unwrap();
    fs::create_dir_all(at(".well-known/acme-challenge")).unwrap();
    fs::create_dir_all(at("a b")).unwrap();
    for (name, content) in [
        ("index.html", "<p>home</p>\n"),
        ("hello.txt", "Hello, world!\n"),
        ("page.html", "<p>page</p>\n"),
        ("page.html.gz", "gzip"),
        ("page.html.br", "brotli"),
        ("page.html.zst", "zstd"),
        ("folder/file.css", "p {}\n"),
        (".env", "SECRET=1\n"),
        (".git/config", "[core]\n"),
        (".well-known/acme-challenge/token", "token\n"),
        ("a b/c%20d.txt", "percent\n"),
        ("a b/\u{fc}.txt", "umlaut\n"),
        ("empty.txt", ""),
        ("noending", "?"),
    ] {
        fs::write(at(name), content).unwrap();
    }
    fs::write(at("big.bin"), pattern::blocks(3 << 20).flatten().collect::<Vec<u8>>()).unwrap();
    fs::write(scratch.path().join("secret.txt"), "secret\n").unwrap();
    symlink("../secret.txt", at("out.txt")).unwrap();
    symlink(scratch.path(), at("out")).unwrap();
    symlink("hello.txt", at("in.txt")).unwrap();
    symlink(at("hello.txt"), at("absolute.txt")).unwrap();
    scratch
}

fn files(scratch: &TempDir, config: Config) -> Files {
    Files::new(scratch.path().join("site"), config).expect("the folder is there")
}

fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Environ {
    let usual = [
        ("REQUEST_METHOD", method),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", path),
        ("SERVER_NAME", "example.org"),
        ("SERVER_PORT", "80"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
    ];
    Environ::new(usual.iter().chain(more).copied().collect::<Variables>())
}

/// Status, a header's value, and the body.
struct Got {
    status: u16,
    head: gatespan::application::Headers,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> Option<String> {
        self.head.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

async fn ask(files: &Files, environ: Environ) -> Got {
    match call(files.clone(), environ).await {
        Ok(Response { head, mut body }) => {
            let body = body.read_to_end(8 << 20).await.expect("a whole body").to_vec();
            Got { status: head.status.code(), head: head.headers, body }
        }
        Err(error) => Got { status: error.status(), head: ().into(), body: Vec::new() },
    }
}

async fn get(files: &Files, path: &str) -> Got {
    ask(files, request("GET", path, &[])).await
}

/// Serves an application on a port of its own for as long as the test runs.
fn serve(application: impl Application) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let listener = Listener::from_descriptor(listener.into(), 0).expect("it listens");
    tokio::spawn(gateway::serve(listener, application, gateway::Config::default(), std::future::pending()));
    address
}

#[tokio::test]
async fn files_come_with_type_length_and_validators() {
    let scratch = site();
    let files = files(&scratch, Config { cache_control: Some("max-age=60".into()), ..Config::default() });
    for (path, content_type, body) in [
        ("/hello.txt", "text/plain; charset=utf-8", &b"Hello, world!\n"[..]),
        ("/", "text/html; charset=utf-8", b"<p>home</p>\n"),
        ("/folder/file.css", "text/css; charset=utf-8", b"p {}\n"),
        ("/a b/c%20d.txt", "text/plain; charset=utf-8", b"percent\n"),
        ("/a b/\u{fc}.txt", "text/plain; charset=utf-8", b"umlaut\n"),
        ("/.well-known/acme-challenge/token", "application/octet-stream", b"token\n"),
        ("/noending", "application/octet-stream", b"?"),
        ("/in.txt", "text/plain; charset=utf-8", b"Hello, world!\n"),
        ("/absolute.txt", "text/plain; charset=utf-8", b"Hello, world!\n"),
        // Out of the folder and back into it.
        ("/out/site/hello.txt", "text/plain; charset=utf-8", b"Hello, world!\n"),
        ("//folder///file.css", "text/css; charset=utf-8", b"p {}\n"),
        ("/empty.txt", "text/plain; charset=utf-8", b""),
    ] {
        let got = get(&files, path).await;
        assert_eq!((got.status, &*got.body), (200, body), "{path}");
        assert_eq!(got.header("Content-Type").as_deref(), Some(content_type), "{path}");
        assert_eq!(got.header("Content-Length"), Some(body.len().to_string()), "{path}");
        assert_eq!(got.header("Cache-Control").as_deref(), Some("max-age=60"), "{path}");
        assert!(got.header("ETag").is_some() && got.header("Last-Modified").is_some(), "{path}");
    }
    let big = get(&files, "/big.bin").await;
    assert_eq!(big.body, fs::read(scratch.path().join("site/big.bin")).unwrap());
}

#[tokio::test]
async fn what_is_hidden_outside_or_nothing_is_404() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    for path in [
        "/missing",
        "/.env",
        "/.git/config",
        "/folder/../.env",
        "/../secret.txt",
        "/folder/../../secret.txt",
        "/./hello.txt",
        "/..",
        "/...",
        "/.",
        "/out.txt",
        "/out/secret.txt",
        "/out/site/.env",
        "/hello.txt/",
        "/hello.txt/more",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..\\secret.txt",
        "/folder/",
        "/folder/empty/",
    ] {
        assert_eq!(get(&files, path).await.status, 404, "{path}");
    }
    assert_eq!(get(&files, "/hello.txt\0.html").await.status, 400);
    assert_eq!(get(&files, &format!("/{}", "x".repeat(4096))).await.status, 414);
    assert_eq!(get(&files, &format!("/{}", "x".repeat(300))).await.status, 404);
    let short = self::files(&scratch, Config { max_path: 4, ..Config::default() });
    assert_eq!((get(&short, "/out").await.status, get(&short, "/long").await.status), (404, 414));
}

#[tokio::test]
async fn links_out_of_the_folder_are_followed_when_told() {
    let scratch = site();
    let files = files(&scratch, Config { links: Links::Anywhere, ..Config::default() });
    assert_eq!(get(&files, "/out.txt").await.body, b"secret\n");
    assert_eq!(get(&files, "/out/secret.txt").await.body, b"secret\n");
    assert_eq!(get(&files, "/out/../secret.txt").await.status, 404);
}

/// Through the gateway, where the encodings are undone: once.
#[tokio::test]
async fn traversal_gets_nowhere_in_any_encoding() {
    let scratch = site();
    let address = serve(files(&scratch, Config::default()));
    for (target, statuses) in [
        ("/../secret.txt", &[404][..]),
        ("/%2e%2e/secret.txt", &[404]),
        ("/%2E%2E%2Fsecret.txt", &[404]),
        ("/..%2fsecret.txt", &[404]),
        ("/..%5csecret.txt", &[404]),
        ("/%252e%252e/secret.txt", &[404]),
        ("/%c0%ae%c0%ae/secret.txt", &[404]),
        ("/%uff0e%uff0e/secret.txt", &[400]),
        ("/folder/%2e%2e/%2e%2e/secret.txt", &[404]),
        ("/folder/..;/../secret.txt", &[404]),
        ("//etc/passwd", &[404]),
        ("/%2fetc/passwd", &[404]),
        ("/%00", &[400]),
        ("/hello.txt%00.html", &[400]),
        ("/hello.txt%", &[400]),
        ("/%2egit/config", &[404]),
        ("/.%67it/config", &[404]),
        ("/hello.txt%2f", &[404]),
        ("/hello.txt%20", &[404]),
        ("/hello.txt.", &[404]),
        ("/HELLO.TXT", &[404]),
        ("/hello%2etxt", &[200]),
        ("/a%20b/c%2520d.txt", &[200]),
        ("/a%20b/%c3%bc.txt", &[200]),
        ("/folder%2ffile.css", &[200]),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).and_then(|code| code.parse::<u16>().ok()).unwrap_or_default();
        assert!(statuses.contains(&status), "{target}: {answer}");
        assert!(
            !answer.contains("secret\n") && !answer.contains("root:") && !answer.contains("[core]"),
            "{target}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_file_that_may_not_be_read_is_403_and_a_device_404() {
    let scratch = site();
    let path = scratch.path().join("site/barred.txt");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let files = files(&scratch, Config { links: Links::Anywhere, ..Config::default() });
    // Root may read everything.
    let expected = if rustix::process::getuid().is_root() { 200 } else { 403 };
    assert_eq!(get(&files, "/barred.txt").await.status, expected);
    symlink("/dev/zero", scratch.path().join("site/zero")).unwrap();
    assert_eq!(get(&files, "/zero").await.status, 404);
    let _socket = std::os::unix::net::UnixListener::bind(scratch.path().join("site/socket")).unwrap();
    assert_eq!(get(&files, "/socket").await.status, 404);
}

#[tokio::test]
async fn other_methods_are_405_with_allow() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "get", "PROPFIND"] {
        let got = ask(&files, request(method, "/hello.txt", &[])).await;
        assert_eq!((got.status, got.header("Allow").as_deref()), (405, Some("GET, HEAD")), "{method}");
    }
    let head = ask(&files, request("HEAD", "/hello.txt", &[])).await;
    assert_eq!((head.status, &*head.body, head.header("Content-Length").as_deref()), (200, &b""[..], Some("14")));
}

#[tokio::test]
async fn a_folder_without_its_slash_is_a_redirect_within_the_site() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    for (script_name, path, query, location) in [
        ("", "/folder", "", "/folder/"),
        ("", "/folder", "a=b", "/folder/?a=b"),
        ("/shop", "/a b", "", "/shop/a%20b/"),
        ("/shop", "", "", "/shop/"),
        // No other host's name can begin here.
        ("", "//folder", "", "/folder/"),
        ("//evil.example", "/folder", "", "/evil.example/folder/"),
    ] {
        let environ = request("GET", path, &[("SCRIPT_NAME", script_name), ("QUERY_STRING", query)]);
        let got = ask(&files, environ).await;
        assert_eq!((got.status, got.header("Location").as_deref()), (301, Some(location)), "{script_name} {path}");
    }
}

#[tokio::test]
async fn without_path_info_the_path_is_script_name() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    let environ = Environ::new(Variables::from_iter([("REQUEST_METHOD", "GET"), ("SCRIPT_NAME", "/hello.txt")]));
    assert_eq!(ask(&files, environ).await.status, 200);
}

#[tokio::test]
async fn below_a_mount_it_is_the_same_folder() {
    let scratch = site();
    let address = serve(Mount::new().at("/static", files(&scratch, Config::default())));
    let mut client = Client::connect(address).await.unwrap();
    assert_eq!(client.get("/static/hello.txt").await.unwrap().text(), "Hello, world!\n");
    let redirect = client.get("/static/folder").await.unwrap();
    assert_eq!((redirect.status, redirect.values("location")), (301, vec!["/static/folder/".to_owned()]));
}

#[tokio::test]
async fn ranges_and_conditions_are_answered() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    let whole = get(&files, "/hello.txt").await;
    let (etag, modified) = (whole.header("ETag").unwrap(), whole.header("Last-Modified").unwrap());
    let ask = async |name: &str, value: &str| ask(&files, request("GET", "/hello.txt", &[(name, value)])).await;
    let part = ask("HTTP_RANGE", "bytes=7-11").await;
    assert_eq!((part.status, &*part.body), (206, &b"world"[..]));
    assert_eq!(part.header("Content-Range").as_deref(), Some("bytes 7-11/14"));
    let beyond = ask("HTTP_RANGE", "bytes=14-").await;
    assert_eq!((beyond.status, beyond.header("Content-Range").as_deref()), (416, Some("bytes */14")));
    assert_eq!(ask("HTTP_RANGE", "bytes=0-1,3-4").await.status, 200);
    let known = ask("HTTP_IF_NONE_MATCH", &etag).await;
    assert_eq!((known.status, known.header("ETag"), known.header("Content-Length")), (304, Some(etag), None));
    assert_eq!(ask("HTTP_IF_MODIFIED_SINCE", &modified).await.status, 304);
    assert_eq!(ask("HTTP_IF_MATCH", "\"other\"").await.status, 412);
    // A large part is a part of the file.
    let large = self::ask(&files, request("GET", "/big.bin", &[("HTTP_RANGE", "bytes=1000000-2999999")])).await;
    let content = fs::read(scratch.path().join("site/big.bin")).unwrap();
    assert_eq!((large.status, &*large.body), (206, &content[1_000_000..3_000_000]));
}

#[tokio::test]
async fn another_state_of_a_file_has_another_tag() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    let before = get(&files, "/hello.txt").await.header("ETag");
    tokio::time::sleep(Duration::from_millis(20)).await;
    fs::write(scratch.path().join("site/hello.txt"), "Hello, again!\n").unwrap();
    assert_ne!(get(&files, "/hello.txt").await.header("ETag"), before);
}

#[tokio::test]
async fn copies_in_other_codings_go_to_those_who_take_them() {
    let scratch = site();
    let precompressed = vec![Coding::Brotli, Coding::Zstd, Coding::Gzip];
    let files = files(&scratch, Config { precompressed, ..Config::default() });
    let plain = get(&files, "/page.html").await;
    for (accept, coding, body) in [
        ("gzip, br, zstd", Some("br"), &b"brotli"[..]),
        ("zstd, gzip;q=0.5", Some("zstd"), b"zstd"),
        ("gzip", Some("gzip"), b"gzip"),
        ("gzip;q=0", None, b"<p>page</p>\n"),
        ("identity", None, b"<p>page</p>\n"),
    ] {
        let got = ask(&files, request("GET", "/page.html", &[("HTTP_ACCEPT_ENCODING", accept)])).await;
        assert_eq!((got.status, &*got.body), (200, body), "{accept}");
        assert_eq!(got.header("Content-Encoding").as_deref(), coding, "{accept}");
        assert_eq!(got.header("Content-Type").as_deref(), Some("text/html; charset=utf-8"), "{accept}");
        assert_eq!(got.header("Vary").as_deref(), Some("Accept-Encoding"), "{accept}");
        assert_eq!(got.header("ETag") == plain.header("ETag"), coding.is_none(), "{accept}");
    }
    let without = ask(&files, request("GET", "/hello.txt", &[("HTTP_ACCEPT_ENCODING", "gzip")])).await;
    assert_eq!((without.header("Content-Encoding"), &*without.body), (None, &b"Hello, world!\n"[..]));
    // A copy alone is no file of that name.
    fs::write(scratch.path().join("site/only.css.gz"), "x").unwrap();
    assert_eq!(ask(&files, request("GET", "/only.css", &[("HTTP_ACCEPT_ENCODING", "gzip")])).await.status, 404);
}

#[tokio::test]
async fn a_listing_is_an_option_escaped_sorted_and_bounded() {
    let scratch = site();
    let folder = scratch.path().join("site/folder");
    for name in ["<b>&\"'.txt", "10%.txt", "z.txt", ".hidden"] {
        fs::write(folder.join(name), "").unwrap();
    }
    symlink("/", folder.join("link")).unwrap();
    let page = get(&files(&scratch, Config { listing: true, ..Config::default() }), "/folder/").await;
    let text = String::from_utf8(page.body.clone()).unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(page.header("Content-Type").as_deref(), Some("text/html; charset=utf-8"));
    let links: Vec<&str> = text.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(
        links,
        ["../", "./empty/", "./link/", "./10%25.txt", "./%3Cb%3E&amp;%22&#39;.txt", "./file.css", "./z.txt"]
    );
    assert!(
        text.contains("&lt;b&gt;&amp;&quot;&#39;.txt") && !text.contains("<b>") && !text.contains("hidden"),
        "{text}"
    );
    // An index is more than a list.
    assert_eq!(get(&files(&scratch, Config { listing: true, ..Config::default() }), "/").await.body, b"<p>home</p>\n");
    let short =
        get(&files(&scratch, Config { listing: true, listing_limit: 2, ..Config::default() }), "/folder/").await;
    let text = String::from_utf8(short.body).unwrap();
    assert!(text.contains("these are 2 names") && text.matches("<li>").count() == 3, "{text}");
}

#[tokio::test]
async fn large_files_are_frames_that_a_gateway_may_send_without_reading() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    let mut response = call(files.clone(), request("GET", "/big.bin", &[])).await.unwrap();
    let frame = std::future::poll_fn(|cx| response.body.poll_frame(cx)).await.unwrap().unwrap();
    assert!(matches!(frame, Frame::File(range) if range.len == 3 << 20), "a file as one frame");
    let mut response = call(files, request("GET", "/hello.txt", &[])).await.unwrap();
    let frame = std::future::poll_fn(|cx| response.body.poll_frame(cx)).await.unwrap().unwrap();
    assert!(matches!(frame, Frame::Data(_)), "a small file as bytes");
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_sent_is_a_cut_answer() {
    let scratch = site();
    let files = files(&scratch, Config::default());
    let mut response = call(files, request("GET", "/big.bin", &[])).await.unwrap();
    fs::File::options().write(true).open(scratch.path().join("site/big.bin")).unwrap().set_len(100).unwrap();
    assert!(response.body.read_to_end(8 << 20).await.is_err());
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_refused_at_the_start() {
    assert!(Files::new("/nowhere", Config::default()).is_err());
    assert!(Files::new(Path::new("/etc/passwd"), Config::default()).is_err());
}

#[tokio::test]
async fn the_interface_is_kept_to_in_every_kind_of_answer() {
    let scratch = site();
    let config = Config { listing: true, precompressed: vec![Coding::Gzip], ..Config::default() };
    let breaches = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let reported = breaches.clone();
    let report = move |breach: &gatespan::middleware::Breach| reported.lock().unwrap().push(breach.to_string());
    let address = serve(validate(files(&scratch, config)).report_to(report));
    let mut client = Client::connect(address).await.unwrap();
    for (method, target, headers, status) in [
        ("GET", "/", &[][..], 200),
        ("HEAD", "/hello.txt", &[], 200),
        ("GET", "/big.bin", &[("Range", "bytes=1-2000000")], 206),
        ("GET", "/hello.txt", &[("Range", "bytes=99-")], 416),
        ("GET", "/hello.txt", &[("If-None-Match", "*")], 304),
        ("HEAD", "/hello.txt", &[("If-Match", "\"x\"")], 412),
        ("GET", "/folder", &[], 301),
        ("GET", "/folder/", &[], 200),
        ("HEAD", "/folder/", &[], 200),
        ("GET", "/missing", &[], 404),
        ("POST", "/hello.txt", &[], 405),
        ("GET", "/page.html", &[("Accept-Encoding", "gzip")], 200),
    ] {
        let answer = client.send(method, target, headers, Upload::Nothing).await.unwrap();
        assert_eq!((answer.status, answer.cut.as_deref()), (status, None), "{method} {target}: {}", answer.text());
    }
    assert_eq!(*breaches.lock().unwrap(), Vec::<String>::new());
}
