//! Real CGI programs through `gatespan bridge`: gitweb, from Debian's folder of scripts with its links, and git's own, to which real clients clone
//! and push.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use support::client::get;
use support::process::{Scratch, Server, free_address, program};
use support::scripts::bridge;

/// A git that knows nothing of this machine's settings.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = program("/usr/bin/git", "git");
    command.args([
        "-c",
        "user.name=Somebody",
        "-c",
        "user.email=somebody@example.com",
        "-c",
        "init.defaultBranch=main",
    ]);
    command.args(arguments).current_dir(folder).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", folder);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
    let output = command.output().expect("git starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "git {arguments:?}: {}: {text}", output.status);
    text
}

/// A project with one file and one commit, in `projects/demo.git`, that takes pushes.
fn project(scratch: &Scratch) {
    let (projects, work) = (scratch.path("projects"), scratch.path("work"));
    fs::create_dir(&projects).expect("a folder can be made");
    fs::create_dir(&work).expect("a folder can be made");
    git(&work, &["init", "-q"]);
    fs::write(work.join("hello.txt"), "Hello from a file\n").expect("a file can be written");
    git(&work, &["add", "hello.txt"]);
    git(&work, &["commit", "-q", "-m", "The first of all commits"]);
    git(&projects, &["clone", "-q", "--bare", &work.display().to_string(), "demo.git"]);
    git(&projects.join("demo.git"), &["config", "http.receivepack", "true"]);
    scratch.write("gitweb.conf", &format!("$projectroot = \"{}\";\n", projects.display()));
}

fn nginx(scratch: &Scratch, fixture: &str, socket: &str) -> (Server, SocketAddr) {
    let address = free_address();
    let values = [("PORT", &*address.port().to_string()), ("SOCKET", socket)];
    let configuration = scratch.configuration(fixture, &values);
    let mut command: Command = program("/usr/sbin/nginx", "nginx-light");
    command.arg("-c").arg(configuration).arg("-e").arg("stderr");
    (Server::start(scratch, "nginx", command, &[]).ready_on(address), address)
}

/// A list of projects, a page of one, and a file.
async fn gitweb_answers(address: SocketAddr) {
    program("/usr/share/gitweb/gitweb.cgi", "gitweb");
    let list = get(address, "/cgi-bin/gitweb.cgi").await.expect("an answer comes");
    assert_eq!((list.status, &list.cut), (200, &None), "{}", list.text());
    assert!(list.text().contains("demo.git"), "{}", list.text());
    let page = get(address, "/cgi-bin/gitweb.cgi?p=demo.git;a=summary").await.expect("an answer comes");
    assert_eq!((page.status, &page.cut), (200, &None), "{}", page.text());
    assert!(page.text().contains("The first of all commits"), "{}", page.text());
    let file = get(address, "/cgi-bin/gitweb.cgi?p=demo.git;a=blob_plain;f=hello.txt").await.expect("an answer comes");
    assert_eq!((file.status, file.text().as_str()), (200, "Hello from a file\n"));
    // The same with PATH_INFO.
    let file = get(address, "/cgi-bin/gitweb.cgi/demo.git/blob_plain/HEAD:/hello.txt").await.expect("an answer comes");
    assert_eq!((file.status, file.text().as_str()), (200, "Hello from a file\n"));
    let none = get(address, "/cgi-bin/gitweb.cgi?p=nowhere.git").await.expect("an answer comes");
    assert_eq!(none.status, 404, "{}", none.text());
}

/// gitweb behind nginx with a location whose socket alone is another.
async fn gitweb_behind_nginx(location: &Path, socket_there: &str) {
    let scratch = Scratch::new();
    project(&scratch);
    let socket = scratch.path("scripts.sock").display().to_string();
    let text = fs::read_to_string(location).unwrap_or_else(|error| panic!("{}: {error}", location.display()));
    assert!(text.contains(socket_there), "{text}");
    scratch.write("location.conf", &text.replace(socket_there, &socket));
    let config = format!("GITWEB_CONFIG={}", scratch.path("gitweb.conf").display());
    let command = bridge(&format!("fastcgi:{socket}"), "cgi:/usr/lib/cgi-bin/", &["--env", &config]);
    let _host = Server::start(&scratch, "host", command, &[]).ready_at(Path::new(&socket));
    let (_nginx, address) = nginx(&scratch, "nginx/scripts_stock.conf", &socket);
    gitweb_answers(address).await;
}

#[tokio::test]
async fn gitweb_behind_nginx_with_our_location() {
    let location = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/servers/nginx/cgi-bin.location");
    gitweb_behind_nginx(&location, "/run/gatespan.sock").await;
}

/// Whoever comes from fcgiwrap changes the socket and nothing else.
#[tokio::test]
async fn gitweb_behind_nginx_with_debians_location_for_fcgiwrap() {
    program("/usr/share/doc/fcgiwrap/examples/nginx.conf", "fcgiwrap");
    gitweb_behind_nginx(Path::new("/usr/share/doc/fcgiwrap/examples/nginx.conf"), "/run/fcgiwrap.socket").await;
}

#[tokio::test]
async fn gitweb_over_http() {
    let scratch = Scratch::new();
    project(&scratch);
    let address = free_address();
    let config = format!("GITWEB_CONFIG={}", scratch.path("gitweb.conf").display());
    let options = ["--route", "/cgi-bin=cgi:/usr/lib/cgi-bin/", "--env", &config];
    let command = bridge(&format!("http://{address}"), "app:hello", &options);
    let _host = Server::start(&scratch, "host", command, &[]).ready_on(address);
    gitweb_answers(address).await;
}

/// Clones, pushes 3 MB, and clones again. With a small buffer git sends a push in chunks, without a length.
fn clone_and_push(scratch: &Scratch, address: SocketAddr) {
    let folder = scratch.path("clients");
    fs::create_dir(&folder).expect("a folder can be made");
    let url = format!("http://{address}/git/demo.git");
    git(&folder, &["clone", "-q", &url, "first"]);
    let first = folder.join("first");
    assert_eq!(fs::read_to_string(first.join("hello.txt")).expect("it was cloned"), "Hello from a file\n");
    // What can't be compressed, so that the push is as long as it is.
    let mut number = 1_u64;
    let noise: Vec<u8> = (0..3_000_000)
        .map(|_| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (number >> 33) as u8
        })
        .collect();
    fs::write(first.join("noise"), &noise).expect("a file can be written");
    git(&first, &["add", "noise"]);
    git(&first, &["commit", "-q", "-m", "Some noise"]);
    git(&first, &["-c", "http.postBuffer=65536", "push", "-q", "origin", "HEAD"]);
    git(&folder, &["clone", "-q", &url, "second"]);
    assert!(fs::read(folder.join("second/noise")).expect("it was cloned") == noise, "the noise is another");
    // Without changes there is nothing to fetch, but a long list of what one has may be sent, compressed.
    git(&first, &["fetch", "-q", "origin"]);
    git(&folder.join("second"), &["fsck", "--full"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_clones_and_pushes_behind_nginx() {
    let scratch = Scratch::new();
    project(&scratch);
    let socket = scratch.path("scripts.sock").display().to_string();
    let command = bridge(&format!("fastcgi:{socket}"), "cgi:/usr/lib/git-core/git-http-backend", &[]);
    let _host = Server::start(&scratch, "host", command, &[]).ready_at(Path::new(&socket));
    let (_nginx, address) = nginx(&scratch, "nginx/git.conf", &socket);
    clone_and_push(&scratch, address);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_clones_and_pushes_over_http() {
    let scratch = Scratch::new();
    project(&scratch);
    let address = free_address();
    let root = format!("GIT_PROJECT_ROOT={}", scratch.path("projects").display());
    let options =
        ["--route", "/git=cgi:/usr/lib/git-core/git-http-backend", "--env", &root, "--env", "GIT_HTTP_EXPORT_ALL="];
    let command = bridge(&format!("http://{address}"), "app:hello", &options);
    let _host = Server::start(&scratch, "host", command, &[]).ready_on(address);
    clone_and_push(&scratch, address);
}
