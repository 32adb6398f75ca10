//! Sites as people run them, with a real php-fpm, beside a real nginx that is set up the usual way.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gatespan::address::Endpoint;
use gatespan::application::driver::call;
use gatespan::application::{AnyApplication, Application, Variables};
use gatespan::gateway::http as gateway;
use gatespan::gateway::listener::{ListenOptions, Listener};
use gatespan::middleware::{AuthorizerConfig, ClientAddressConfig, Mount, authorizer, client_address};
use gatespan::protocol::fastcgi::Role;
use gatespan::upstream::fastcgi::{self, Forwarder};
use gatespan::upstream::files::{self, Files};
use gatespan::upstream::http::{self, Proxy};
use gatespan::upstream::site::{Config, Links, Site};
use gatespan::{Body, Environ, Error, StartResponse};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod support;
use support::client::{self, Client, Upload};
use support::process::{Scratch, Server, free_address, program};

/// Serves an application on a port of its own for as long as the test runs.
fn serve(application: impl Application) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let listener = Listener::from_descriptor(listener.into(), 0).expect("it listens");
    tokio::spawn(gateway::serve(listener, application, gateway::Config::default(), std::future::pending()));
    address
}

/// Copies a site of `fixtures/php` to where php-fpm's workers, which are another user, may read it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    fs::set_permissions(to, fs::Permissions::from_mode(0o777)).expect("a folder's mode can be set");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("a folder can be read");
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), &target).expect("a file can be copied");
                fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).expect("a file's mode can be set");
            }
        }
    }
}

/// php-fpm, and a site for it.
struct Php {
    scratch: Scratch,
    _fpm: Server,
}

impl Php {
    fn start(fixture: &str) -> Self {
        let scratch = Scratch::new();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/php").join(fixture), &scratch.path("htdocs"));
        let root_only = if rustix::process::getuid().is_root() { "" } else { ";" };
        let configuration = scratch.configuration("php-fpm/site.conf", &[("ROOT_ONLY", root_only)]);
        let mut command = program("/usr/sbin/php-fpm8.2", "php8.2-fpm");
        command.arg("--nodaemonize").arg("--fpm-config").arg(configuration);
        let fpm = Server::start(&scratch, "php-fpm", command, &["php-fpm.log"]).ready_at(&scratch.path("php.sock"));
        Self { scratch, _fpm: fpm }
    }

    fn root(&self, below: &str) -> PathBuf {
        self.scratch.path("htdocs").join(below)
    }

    fn site(&self, below: &str, config: Config) -> Site<Forwarder, Files> {
        let endpoint = Endpoint::Unix(self.scratch.path("php.sock"));
        let scripts = Forwarder::new([endpoint], fastcgi::Config::default()).expect("a forwarder");
        let files = Files::new(self.root(below), files::Config { links: config.links, ..files::Config::default() });
        Site::new(self.root(below), scripts, files.expect("the folder is there"), config).expect("the folder is there")
    }
}

fn style(try_files: &str) -> Config {
    Config { try_files: try_files.parse().expect(try_files), ..Config::default() }
}

const WORDPRESS: &str = "$uri $uri/ /index.php?$args";
const LARAVEL: &str = "$uri $uri/ /index.php?$query_string";
const SYMFONY: &str = "$uri /index.php$is_args$args";

#[tokio::test(flavor = "multi_thread")]
async fn a_flat_file_application_works_with_its_files_beside_it() {
    let php = Php::start("flat");
    let config = Config { deny: vec!["/data/*".into(), "*.sql".into()], ..Config::default() };
    let mut client = Client::connect(serve(php.site("", config))).await.unwrap();

    let home = client.get("/").await.unwrap();
    assert_eq!((home.status, home.values("set-cookie").len()), (200, 2), "{}", home.text());
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let posted =
        client.send("POST", "/index.php", &form, Upload::Text("name=Ann&text=%3Cb%3EHi%3C%2Fb%3E")).await.unwrap();
    assert_eq!((posted.status, posted.values("location")), (303, vec!["/index.php".to_owned()]), "{}", posted.text());
    let multipart = "--x\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nBob\r\n--x\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nwith a picture\r\n--x\r\nContent-Disposition: form-data; name=\"picture\"; filename=\"p.gif\"\r\nContent-Type: image/gif\r\n\r\nabc\r\n--x--\r\n";
    let form = [("Content-Type", "multipart/form-data; boundary=x")];
    assert_eq!(client.send("POST", "/", &form, Upload::Text(multipart)).await.unwrap().status, 303);
    let refused = client.send("POST", "/", &[], Upload::Nothing).await.unwrap();
    assert_eq!(refused.status, 422);
    let home = client.get("/index.php").await.unwrap().text();
    assert!(home.contains("<b>Ann</b>: &lt;b&gt;Hi&lt;/b&gt;"), "{home}");
    // SHA-256 of "abc".
    assert!(home.contains("<b>Bob</b>: with a picture ba7816bf8f01cfea"), "{home}");

    for (target, status, part) in [
        ("/style.css", 200, "navy"),
        ("/news/", 200, "News"),
        ("/news", 301, ""),
        ("/uploads/picture.gif", 200, "GIF89a"),
        ("/uploads/", 404, ""),
        ("/missing", 404, ""),
        ("/missing.php", 404, ""),
        ("/data/entries.txt", 403, ""),
        ("/data/", 403, ""),
        ("/dump.sql", 403, ""),
        ("/dump%2esql", 403, ""),
        ("//data//entries.txt", 403, ""),
        ("/news/../data/entries.txt", 404, ""),
        // A folder that is called like a script is none, and what is below it is looked at.
        ("/folder.php/readme.txt", 200, "a folder"),
        ("/folder.php/inner.php/x", 200, "inner /x"),
        ("/folder.php", 301, ""),
    ] {
        let answer = client.get(target).await.unwrap();
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
        assert!(answer.text().contains(part), "{target}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_controller_gets_what_is_no_file_in_every_style() {
    let php = Php::start("front");
    for try_files in [WORDPRESS, LARAVEL, SYMFONY, "$uri $uri/ /index.php"] {
        let mut client = Client::connect(serve(php.site("public", style(try_files)))).await.unwrap();
        for (target, status, text) in [
            ("/", 200, "home\n"),
            ("/index.php", 404, "no route for GET /index.php\n"),
            ("/articles/first?page=2", 200, "article first with page=2\n"),
            ("/articles/a%20b", 200, "article a b with \n"),
            ("/index.php/articles/first?x", 200, "article first with x\n"),
            ("/nowhere/at/all.php", 404, "no route for GET /nowhere/at/all.php\n"),
            ("/assets/app.js", 200, "console.log(\"front\");\n"),
            ("/assets/none.js", 404, "no route for GET /assets/none.js\n"),
            ("/.env", 404, "no route for GET /.env\n"),
        ] {
            let answer = client.get(target).await.unwrap();
            assert_eq!((answer.status, &*answer.text()), (status, text), "{try_files}: {target}");
        }
        let put = client.send("PUT", "/echo", &[], Upload::Chunked(200_000)).await.unwrap();
        assert_eq!((put.status, put.length, put.cut), (200, 200_000, None), "{try_files}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_a_mount_a_site_knows_its_place() {
    let php = Php::start("front");
    let mut client =
        Client::connect(serve(Mount::new().at("/blog", php.site("public", style(LARAVEL))))).await.unwrap();
    for (target, status, text) in [
        ("/blog/", 200, "home\n"),
        ("/blog/articles/1", 200, "article 1 with \n"),
        ("/blog/assets/app.js", 200, "console.log(\"front\");\n"),
    ] {
        let answer = client.get(target).await.unwrap();
        assert_eq!((answer.status, &*answer.text()), (status, text), "{target}");
    }
    let redirect = client.get("/blog/assets").await.unwrap();
    assert_eq!((redirect.status, redirect.values("location")), (301, vec!["/blog/assets/".to_owned()]));
}

/// nginx, set up for the same folder and the same php-fpm as its own documentation has it.
fn nginx(php: &Php, scratch: &Scratch) -> (Server, SocketAddr) {
    let address = free_address();
    let server = format!(
        r"index index.php index.html;
        root {};
        location / {{ try_files $uri $uri/ /index.php?$args; }}
        location ~ [^/]\.php(/|$) {{
            fastcgi_split_path_info ^(.+?\.php)(/.*)$;
            set $path_info $fastcgi_path_info;
            try_files $fastcgi_script_name =404;
            include /etc/nginx/fastcgi_params;
            fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
            fastcgi_param PATH_INFO $path_info;
            fastcgi_pass unix:{};
        }}",
        php.root("").display(),
        php.scratch.path("php.sock").display()
    );
    let values = [("PORT", &*address.port().to_string()), ("SERVER", &server)];
    let configuration = scratch.configuration("nginx/plain.conf", &values);
    let text = fs::read_to_string(&configuration).unwrap();
    // The recipe's own root is another folder.
    fs::write(
        &configuration,
        text.replacen(&format!("root {}/htdocs;", scratch.path("").display().to_string().trim_end_matches('/')), "", 1),
    )
    .unwrap();
    let mut command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-p").arg(scratch.path("")).arg("-c").arg(configuration);
    (Server::start(scratch, "nginx", command, &[]).ready_on(address), address)
}

#[tokio::test(flavor = "multi_thread")]
async fn php_is_told_what_nginx_tells_it() {
    let php = Php::start("flat");
    // A folder that is called like a script is more than nginx's recipe can take.
    fs::remove_dir_all(php.root("folder.php")).unwrap();
    // The page behind the front controller says what it was told.
    fs::copy(php.root("info.php"), php.root("index.php")).unwrap();
    let other = Scratch::new();
    let (_nginx, reference) = nginx(&php, &other);
    let ours = serve(php.site("", style(WORDPRESS)));
    let mut compared = 0;
    for (method, target, upload) in [
        ("GET", "/info.php", Upload::Nothing),
        ("GET", "/info.php?a=1&b=%20", Upload::Nothing),
        ("GET", "/info.php/extra/path?x", Upload::Nothing),
        ("GET", "/info.php/extra%2Fpath", Upload::Nothing),
        ("GET", "/info.php/with%20blank", Upload::Nothing),
        ("GET", "/info.php/", Upload::Nothing),
        ("GET", "/", Upload::Nothing),
        ("GET", "/?q=1", Upload::Nothing),
        ("GET", "/no/such/page?q=1", Upload::Nothing),
        ("POST", "/no/such/page", Upload::Text("a=b")),
        ("POST", "/info.php", Upload::Sized(100)),
        ("DELETE", "/info.php", Upload::Nothing),
        ("GET", "/info.php/a.php/b", Upload::Nothing),
        ("GET", "/info.php%0a/x", Upload::Nothing),
        ("GET", "/info.php/%0a", Upload::Nothing),
    ] {
        let headers = [("X-Odd", "1"), ("Cookie", "a=1"), ("Content-Type", "application/x-odd")];
        let ask = async |address| {
            let mut client = Client::connect(address).await.unwrap();
            client.send(method, target, &headers, upload.clone()).await.unwrap()
        };
        let (theirs, ours) = (ask(reference).await, ask(ours).await);
        assert_eq!(ours.status, theirs.status, "{method} {target}: {}", ours.text());
        for name in [
            "SCRIPT_FILENAME",
            "SCRIPT_NAME",
            "PATH_INFO",
            "PATH_TRANSLATED",
            "PHP_SELF",
            "DOCUMENT_ROOT",
            "DOCUMENT_URI",
            "REQUEST_URI",
            "REQUEST_METHOD",
            "REQUEST_SCHEME",
            "QUERY_STRING",
            "CONTENT_LENGTH",
            "CONTENT_TYPE",
            "SERVER_PROTOCOL",
            "GATEWAY_INTERFACE",
            "REDIRECT_STATUS",
            "REMOTE_ADDR",
            "HTTPS",
            "HTTP_X_ODD",
            "HTTP_COOKIE",
            "body",
        ] {
            // Empty is unset. PATH_TRANSLATED is not among nginx's stock parameters, and DOCUMENT_URI has no PATH_INFO there.
            let value = |answer: &client::Answer| answer.line(name).filter(|value| !value.is_empty());
            let (expected, got) = (value(&theirs), value(&ours));
            if (name == "PATH_TRANSLATED" && expected.is_none())
                || (name == "DOCUMENT_URI" && expected != got && target.contains(".php/"))
            {
                continue;
            }
            assert_eq!(got, expected, "{method} {target}: {name}");
            compared += usize::from(expected.is_some());
        }
    }
    assert!(compared > 100, "{compared} variables");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_script_is_not_run_and_no_script_is_given_out() {
    let php = Php::start("flat");
    symlink("/etc/passwd", php.root("passwd.php")).unwrap();
    fs::write(php.scratch.path("outside.php"), "<?php echo 'outside';").unwrap();
    symlink(php.scratch.path("outside.php"), php.root("outside.php")).unwrap();
    fs::write(php.root(".hidden.php"), "<?php echo 'hidden';").unwrap();
    fs::write(php.root("\u{212a}.php"), "<?php echo 'kelvin';").unwrap();
    let address = serve(php.site("", Config::default()));
    for (target, statuses, text) in [
        // A picture's path with a script's name after it: cgi.fix_pathinfo's old hole.
        ("/uploads/picture.gif/x.php", &[404][..], ""),
        ("/uploads/picture.gif%00.php", &[400], ""),
        ("/uploads/picture.gif%0a.php", &[404], ""),
        ("/info.php%00", &[400], ""),
        ("/info.php%00.gif", &[400], ""),
        ("/info.php%20", &[404], ""),
        ("/info.php.", &[404], ""),
        ("/info.php%0a", &[404], ""),
        ("/info.php%0d%0a/x", &[404], ""),
        ("/info.ph%50", &[404], ""),
        // php-fpm itself runs no such ending: 403.
        ("/LOUD.PHP", &[403, 404], ""),
        // Letters that other alphabets lower-case to these (CVE-2026-24895, CVE-2026-45062), and lengths that change by it.
        ("/info.%E1%B5%96hp", &[404], ""),
        ("/%C4%B0%C4%B0%C4%B0%C4%B0/uploads/picture.gif/.php", &[404], ""),
        ("/uploads/picture.gif%C4%B0.php", &[404], ""),
        ("/%E2%84%AA.php", &[200], "kelvin"),
        ("/k.php", &[404], ""),
        ("/.php", &[404], ""),
        ("/.hidden.php", &[404], ""),
        ("/passwd.php", &[404], ""),
        ("/outside.php", &[404], ""),
        ("/../outside.php", &[404], ""),
        ("/%2e%2e/outside.php", &[404], ""),
        ("/info.php/../../outside.php", &[404], ""),
        ("/info.php/..%2f..%2foutside.php", &[404], ""),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).and_then(|code| code.parse::<u16>().ok()).unwrap_or_default();
        assert!(statuses.contains(&status) && answer.contains(text), "{target}: {answer}");
        for secret in ["<?php", "root:", "outside'", "run me not"] {
            assert!(!answer.contains(secret), "{target}: {answer}");
        }
    }
    let long = format!("/info.php/{}", "x".repeat(5000));
    assert_eq!(client::get(address, &long).await.unwrap().status, 414);
    let deep = format!("/info.php{}", "/a.php".repeat(600));
    let answer = client::get(address, &deep).await.unwrap();
    assert_eq!((answer.status, answer.line("SCRIPT_NAME").as_deref()), (200, Some("/info.php")));
    assert_eq!(answer.line("PATH_INFO").unwrap().len(), 3600);
    // Told to, it follows.
    let address = serve(php.site("", Config { links: Links::Anywhere, ..Config::default() }));
    assert_eq!(client::get(address, "/outside.php").await.unwrap().text(), "outside");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_becomes_a_variable_of_the_server() {
    let php = Php::start("flat");
    let address = serve(php.site("", Config::default()));
    let mut client = Client::connect(address).await.unwrap();
    let headers = [
        ("Script-Filename", "/etc/passwd"),
        ("SCRIPT_FILENAME", "/etc/passwd"),
        ("Document-Root", "/"),
        ("Redirect-Status", "1"),
        ("Remote-User", "root"),
        ("Remote_User", "root"),
        ("Https", "on"),
        ("Path-Info", "/x"),
        ("Php-Value", "auto_prepend_file=/etc/passwd"),
        ("Proxy", "http://evil"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
    ];
    let answer = client.send("GET", "/info.php", &headers, Upload::Nothing).await.unwrap();
    let root = php.root("").display().to_string();
    let root = root.trim_end_matches('/');
    for (name, expected) in [
        ("SCRIPT_FILENAME", Some(format!("{root}/info.php"))),
        ("DOCUMENT_ROOT", Some(root.to_owned())),
        ("REDIRECT_STATUS", Some("200".into())),
        ("REMOTE_ADDR", Some("127.0.0.1".into())),
        ("REMOTE_USER", None),
        ("HTTPS", None),
        ("PHP_VALUE", None),
        ("HTTP_PROXY", None),
        ("HTTP_HTTPS", Some("on".into())),
        ("HTTP_REMOTE_USER", Some("root".into())),
        ("HTTP_SCRIPT_FILENAME", Some("/etc/passwd".into())),
    ] {
        assert_eq!(answer.line(name), expected, "{name}");
    }
}

/// A FastCGI server in the role Authorizer, and an HTTP server in its place, before a site.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_of_either_kind_stands_before_a_site() {
    async fn checks(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let is_for_info = environ.target().starts_with(b"/info.php");
        match environ.header("X-Token") {
            Some(b"swordfish") if is_for_info => {
                start_response.start("200 OK", [("Variable-AUTH_NAME", "alice"), ("Variable-HTTP_X_EVIL", "1")])?;
                Ok(Body::empty())
            }
            _ => {
                start_response.start("401 Unauthorized", [("WWW-Authenticate", "Token")])?;
                Ok("Who is there?\n".into())
            }
        }
    }
    let php = Php::start("flat");
    let socket = php.scratch.path("authorizer.sock");
    let listener = Listener::bind(&Endpoint::Unix(socket.clone()), &ListenOptions::default()).await.unwrap();
    let mut config = gatespan::gateway::fastcgi::Config::default();
    config.roles = config.roles.with(Role::Authorizer);
    tokio::spawn(async move {
        let _ = gatespan::gateway::fastcgi::serve(listener, checks, config, std::future::pending()).await;
    });
    let fastcgi = Forwarder::new([Endpoint::Unix(socket)], fastcgi::Config::default()).unwrap();
    let http = Proxy::new(&format!("http://{}", serve(checks)).parse().unwrap(), http::Config::default()).unwrap();
    let gone = Proxy::new(&"http:/nowhere.sock".parse().unwrap(), http::Config::default()).unwrap();
    for (kind, checker) in [
        ("fastcgi", AnyApplication::new(fastcgi)),
        ("http", AnyApplication::new(http)),
        ("gone", AnyApplication::new(gone)),
    ] {
        let site = authorizer(php.site("", Config::default()), checker, AuthorizerConfig::default());
        let mut client = Client::connect(serve(site)).await.unwrap();
        let token = [("X-Token", "swordfish"), ("Auth-Name", "root"), ("X-Evil", "0")];
        let answer = client.send("POST", "/info.php/x?a=b", &token, Upload::Text("body")).await.unwrap();
        if kind == "gone" {
            assert_eq!(answer.status, 502);
            continue;
        }
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        let line = |name| answer.line(name);
        assert_eq!(line("AUTH_NAME").as_deref(), Some("alice"), "{kind}");
        assert_eq!((line("HTTP_X_EVIL").as_deref(), line("PATH_INFO").as_deref()), (Some("0"), Some("/x")), "{kind}");
        assert_eq!(line("body").as_deref(), Some("body"), "{kind}");
        let refused = client.send("POST", "/info.php", &[], Upload::Text("body")).await.unwrap();
        assert_eq!((refused.status, &*refused.text()), (401, "Who is there?\n"), "{kind}");
        assert_eq!(refused.values("www-authenticate"), ["Token"], "{kind}");
        assert_eq!(client.send("GET", "/style.css", &token, Upload::Nothing).await.unwrap().status, 401, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn php_sees_the_client_behind_a_trusted_proxy_and_no_other() {
    let php = Php::start("front");
    let forwarded = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https"), ("Host", "example.org")];
    for (trusted, text) in [
        ("127.0.0.0/8", "https://example.org from 203.0.113.9\n"),
        ("10.0.0.0/8", "http://example.org from 127.0.0.1\n"),
    ] {
        let config = ClientAddressConfig { trusted: trusted.parse().unwrap(), ..ClientAddressConfig::default() };
        let address = serve(client_address(php.site("public", style(LARAVEL)), config));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let fields: String = forwarded.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        stream.write_all(format!("GET /url HTTP/1.1\r\n{fields}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(text), "{trusted}: {answer}");
    }
}

/// The params that its scripts were called with.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Environ>>>);

impl Application for Told {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        self.0.lock().expect("no test fails with it").push(environ);
        start_response.start("200 OK", [("Content-Type", "text/plain")])?;
        Ok("script".into())
    }
}

fn told(root: &TempDir, config: Config) -> (Told, Site<Told, Files>) {
    let told = Told::default();
    let files = Files::new(root.path(), files::Config::default()).unwrap();
    (told.clone(), Site::new(root.path(), told, files, config).unwrap())
}

fn request(pairs: &[(&str, &str)]) -> Environ {
    let usual = [("REQUEST_METHOD", "GET"), ("SERVER_NAME", "s"), ("SERVER_PORT", "80")];
    Environ::new(usual.iter().chain(pairs).copied().collect::<Variables>())
}

async fn status(site: &Site<Told, Files>, environ: Environ) -> u16 {
    match call(site.clone(), environ).await {
        Ok(response) => response.head.status.code(),
        Err(error) => error.status(),
    }
}

#[tokio::test]
async fn a_script_is_told_where_it_is_for_the_one_who_runs_it() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.php"), "").unwrap();
    let config = Config { script_root: Some("/var/www/html".into()), ..Config::default() };
    let (told, site) = told(&root, config);
    // What a web server in front said of another script counts for nothing.
    let environ = request(&[
        ("SCRIPT_NAME", "/mounted"),
        ("PATH_INFO", "/a.php/in fo"),
        ("REQUEST_URI", "/mounted/a.php/in%20fo?q"),
        ("QUERY_STRING", "q"),
        ("SCRIPT_FILENAME", "/etc/passwd"),
        ("DOCUMENT_ROOT", "/"),
        ("HTTPS", ""),
    ]);
    assert_eq!(status(&site, environ).await, 200);
    let environ = told.0.lock().unwrap().pop().unwrap();
    for (name, value) in [
        ("SCRIPT_FILENAME", Some("/var/www/html/a.php")),
        ("DOCUMENT_ROOT", Some("/var/www/html")),
        ("SCRIPT_NAME", Some("/mounted/a.php")),
        ("PATH_INFO", Some("/in fo")),
        ("PATH_TRANSLATED", Some("/var/www/html/in fo")),
        ("DOCUMENT_URI", Some("/mounted/a.php/in fo")),
        ("REQUEST_URI", Some("/mounted/a.php/in%20fo?q")),
        ("QUERY_STRING", Some("q")),
        ("REDIRECT_STATUS", Some("200")),
        ("GATEWAY_INTERFACE", Some("CGI/1.1")),
        ("HTTPS", None),
    ] {
        assert_eq!(environ.get(name), value.map(str::as_bytes), "{name}");
    }
}

#[tokio::test]
async fn a_script_is_told_one_value_of_what_was_sent_twice() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.php"), "").unwrap();
    let (told, site) = told(&root, Config::default());
    let twice = [("REQUEST_URI", "/a.php?q"), ("QUERY_STRING", "q"), ("SCRIPT_NAME", ""), ("PATH_INFO", "/a.php")];
    let mut environ = request(&[]);
    environ.variables_mut().set_all([twice, twice].iter().flatten().copied()).unwrap();
    assert_eq!(status(&site, environ).await, 200);
    let environ = told.0.lock().unwrap().pop().unwrap();
    for (name, value) in
        [("REQUEST_URI", "/a.php?q"), ("QUERY_STRING", "q"), ("SCRIPT_NAME", "/a.php"), ("PATH_INFO", "")]
    {
        let values: Vec<_> =
            environ.variables().pairs().iter().filter(|(other, _)| *other == name.as_bytes()).collect();
        assert_eq!(values, [(name.as_bytes(), value.as_bytes())]);
    }
}

#[tokio::test]
async fn a_script_that_this_process_may_not_read_is_run_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.php"), "").unwrap();
    fs::set_permissions(root.path().join("a.php"), fs::Permissions::from_mode(0o000)).unwrap();
    let (_, site) = told(&root, Config::default());
    assert_eq!(status(&site, request(&[("PATH_INFO", "/a.php")])).await, 200);
}

#[tokio::test]
async fn limits_and_denials_hold_for_what_try_files_leads_to() {
    let root = tempfile::tempdir().unwrap();
    for name in ["index.php", "page.html", "private.php"] {
        fs::write(root.path().join(name), "").unwrap();
    }
    let config = Config { deny: vec!["/private.php".into()], max_path: 20, ..style("$uri.html /private.php") };
    let (_, site) = told(&root, config);
    assert_eq!(status(&site, request(&[("PATH_INFO", "/page")])).await, 200);
    assert_eq!(status(&site, request(&[("PATH_INFO", "/else")])).await, 403);
    assert_eq!(status(&site, request(&[("PATH_INFO", "/twenty-one-characters")])).await, 414);
    assert_eq!(status(&site, request(&[("PATH_INFO", "/nineteen-characters")])).await, 403);
    let (_, site) = told(&root, style("$uri =410"));
    assert_eq!(status(&site, request(&[("PATH_INFO", "/else")])).await, 410);
    let (_, site) = told(&root, style("$uri /missing.php"));
    assert_eq!(status(&site, request(&[("PATH_INFO", "/else")])).await, 404);
    let (_, site) = told(&root, style("$uri /page.html"));
    assert_eq!(status(&site, request(&[("PATH_INFO", "/else")])).await, 200);
}

#[tokio::test]
async fn other_endings_can_be_scripts() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a.phtml", "b.php"] {
        fs::write(root.path().join(name), "").unwrap();
    }
    let (told, site) = told(&root, Config { endings: vec![".php".into(), ".phtml".into()], ..Config::default() });
    for path in ["/a.phtml", "/a.phtml/x", "/b.php"] {
        assert_eq!(status(&site, request(&[("PATH_INFO", path)])).await, 200, "{path}");
    }
    assert_eq!(told.0.lock().unwrap().len(), 3);
}
