//! What web servers in the field are known to send where the specifications say something else, each case a test of its name: what
//! an application is told of it, as it came and where the application's place is configured.
#![cfg(feature = "fastcgi")]

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;

use std::sync::Arc;

use fastcgi_client::Client;
use gatespan::application::Peer;
use gatespan::gateway::fastcgi::{Config, Gateway, serve_connection};
use gatespan::middleware::Mount;
use gatespan::protocol::fastcgi::Role;
use gatespan::{Application, Environ, Error, StartResponse};
use tokio_util::sync::CancellationToken;

/// Answers with SCRIPT_NAME, PATH_INFO and SCRIPT_FILENAME.
async fn told(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    let names = ["SCRIPT_NAME", "PATH_INFO", "SCRIPT_FILENAME"];
    Ok(names.map(|name| environ.text(name).ok().flatten().unwrap_or("none").to_owned()).join(" "))
}

/// What that application answers behind a web server that sends these params.
async fn answer(application: impl Application, mounted: Option<&str>, params: &[(&str, &str)]) -> String {
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    let script_name = mounted.map(|script_name| script_name.as_bytes().to_vec());
    let config = Config { allow: Vec::new(), script_name, ..Config::default() };
    let gateway = Arc::new(Gateway::new(application, config));
    tokio::spawn(async move { serve_connection(ours, Peer::Unknown, &gateway, &CancellationToken::new()).await });
    let mut client = Client::new(theirs);
    let id = client.begin(Role::Responder, false, &[&[("REQUEST_METHOD", "GET")], params].concat());
    client.end.end_stdin(id);
    let answer = client.answer(id).await;
    assert!(answer.is_complete(), "{}", answer.text());
    String::from_utf8_lossy(answer.body()).into_owned()
}

#[tokio::test]
async fn iis_repeats_script_name_inside_path_info() {
    let params = [("SCRIPT_NAME", "/app"), ("PATH_INFO", "/app/page")];
    assert_eq!(answer(told, None, &params).await, "/app /app/page none");
    // The configured prefix comes off once, of the two together: what is repeated is the application's to know.
    assert_eq!(answer(told, Some("/app"), &params).await, "/app /app/page none");
    // What mends it: to name the place as it is sent, twice, or to mount the application there.
    assert_eq!(answer(told, Some("/app/app"), &params).await, "/app/app /page none");
    assert_eq!(answer(Mount::new().at("/app", told), None, &params).await, "/app/app /page none");
}

#[tokio::test]
async fn lighttpd_at_a_root_mount_gives_script_name_and_an_empty_path_info() {
    let params = [("SCRIPT_NAME", "/x/y"), ("PATH_INFO", "")];
    assert_eq!(answer(told, None, &params).await, "/x/y  none");
    assert_eq!(answer(told, Some(""), &params).await, " /x/y none");
    assert_eq!(answer(told, Some("/x"), &params).await, "/x /y none");
}

#[tokio::test]
async fn openbsd_httpd_may_send_a_folder_as_script_filename() {
    // It names no file that this gateway opens: it is the application's to read, and the path does not depend on it.
    let params = [("SCRIPT_NAME", "/docs"), ("PATH_INFO", "/"), ("SCRIPT_FILENAME", "/var/www/docs/")];
    assert_eq!(answer(told, None, &params).await, "/docs / /var/www/docs/");
    assert_eq!(answer(told, Some(""), &params).await, " /docs/ /var/www/docs/");
}
