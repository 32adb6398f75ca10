//! The application with nothing in front: its own HTTP gateway with the table of all web servers, and two FastCGI clients
//! that others wrote: the crate fastcgi-client and `cgi-fcgi` of the C library.

mod support;

use std::collections::HashSet;
use std::process::{Output, Stdio};
use std::time::Duration;

use fastcgi_client::{Client, ClientError, Params, Request, Response};
use support::process::{Listening, Scratch, Server, free_address, program};
use support::{Front, pattern, table};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_gateway() {
    let scratch = Scratch::new();
    let address = free_address();
    let application = scratch.application(&Listening::Http(address), &[]);
    table::everything(&Front { name: "http", address, scratch, servers: vec![application] }).await;
}

/// What a web server says about a request.
fn params(method: &'static str, path: &'static str, query: &'static str, length: usize) -> Params<'static> {
    Params::default()
        .request_method(method)
        .script_name("/app")
        .script_filename("/srv/www/app")
        .custom("PATH_INFO", path)
        .query_string(query)
        .request_uri(format!("/app{path}?{query}"))
        .server_name("localhost")
        .server_port(80)
        .content_type("application/octet-stream")
        .content_length(length)
}

/// A response of fastcgi-client: the head and the body.
fn parts(response: &Response) -> (String, &[u8]) {
    let stdout = response.stdout.as_deref().expect("there is an answer");
    let end = stdout.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head ends with an empty line");
    (String::from_utf8_lossy(&stdout[..end + 2]).into_owned(), &stdout[end + 4..])
}

#[tokio::test]
async fn fastcgi_client_with_a_connection_for_each_request() {
    let scratch = Scratch::new();
    let address = free_address();
    let _application = scratch.application(&Listening::Tcp(address), &[]);
    let execute = async |params: Params<'static>, body: Vec<u8>| {
        for _ in 0..50 {
            let stream = TcpStream::connect(address).await.expect("the application accepts connections");
            let exchange = Client::new_tokio(stream).execute_once(Request::new(params.clone(), &body[..]));
            match timeout(Duration::from_secs(30), exchange).await.expect("an answer comes in time") {
                // Of an empty body it sends the end twice, the second time to who has answered and closed, if it is slow.
                Err(ClientError::Io(_)) if body.is_empty() => {}
                answer => return answer.expect("an answer comes"),
            }
        }
        panic!("it was too slow each time");
    };

    let answer = execute(params("GET", "/environ", "a=1&b=%20", 0), Vec::new()).await;
    let (head, body) = parts(&answer);
    assert!(head.starts_with("Status: 200 OK\r\n"), "{head}");
    let body = String::from_utf8_lossy(body);
    for line in ["QUERY_STRING=a=1&b=%20", "PATH_INFO=/environ", "SCRIPT_NAME=/app", "REQUEST_METHOD=GET"] {
        assert!(body.lines().any(|came| came == line), "{line} is not in {body}");
    }

    for length in [0, 1, 65_535, 65_536, 3_000_000] {
        let upload: Vec<u8> = pattern::blocks(length).flatten().collect();
        let answer = execute(params("POST", "/digest", "", upload.len()), upload.clone()).await;
        assert_eq!(String::from_utf8_lossy(parts(&answer).1), table::digest(length));
    }
    let wanted: Vec<u8> = pattern::blocks(3_000_000).flatten().collect();
    let answer = execute(params("GET", "/bytes", "n=3000000", 0), Vec::new()).await;
    assert!(parts(&answer).1 == wanted, "the download is not what was sent");

    let answer = execute(params("GET", "/status", "code=418&reason=Short%20and%20stout", 0), Vec::new()).await;
    assert!(parts(&answer).0.starts_with("Status: 418 Short and stout\r\n"));
    let answer = execute(params("GET", "/stderr", "text=for-the-log", 0), Vec::new()).await;
    assert_eq!(parts(&answer).1, b"logged\n");
    assert_eq!(String::from_utf8_lossy(&answer.stderr.unwrap_or_default()), "for-the-log\n");
    let answer = execute(params("GET", "/error-before", "", 0), Vec::new()).await;
    assert!(parts(&answer).0.starts_with("Status: 500 "), "{}", parts(&answer).0);
}

#[tokio::test]
async fn fastcgi_client_with_a_thousand_requests_on_one_connection() {
    let scratch = Scratch::new();
    let socket = scratch.path("app.sock");
    let _application = scratch.application(&Listening::Unix(socket.clone()), &[]);
    let stream = UnixStream::connect(&socket).await.expect("the application accepts connections");
    let mut client = Client::new_keep_alive_tokio(stream);
    let mut connections = HashSet::new();
    for number in 0..1_000 {
        let exchange = client.execute(Request::new(params("GET", "/connection", "ms=0", 0), &b""[..]));
        let answer = timeout(Duration::from_secs(30), exchange).await.expect("an answer comes in time");
        let answer = answer.unwrap_or_else(|error| panic!("request {number}: {error}"));
        connections.insert(String::from_utf8_lossy(parts(&answer).1).into_owned());
    }
    assert_eq!(connections.len(), 1, "{connections:?}");
}

/// Runs `cgi-fcgi` as a web server would: variables in its environment, the body on its standard input.
async fn cgi_fcgi(connect: &str, path: &str, query: &str, body: &[u8]) -> Output {
    let mut command = tokio::process::Command::from(program("/usr/bin/cgi-fcgi", "libfcgi-bin"));
    command.arg("-bind").arg("-connect").arg(connect).env_clear().kill_on_drop(true);
    command.env("REQUEST_METHOD", if body.is_empty() { "GET" } else { "POST" });
    command.env("SCRIPT_NAME", "/app").env("PATH_INFO", path).env("QUERY_STRING", query);
    command.env("CONTENT_LENGTH", body.len().to_string()).env("SERVER_PROTOCOL", "HTTP/1.1");
    command.env("SERVER_NAME", "localhost").env("SERVER_PORT", "80");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("cgi-fcgi starts");
    let mut stdin = child.stdin.take().expect("its input is a pipe");
    let sending = async {
        // An application that answers without reading closes the pipe.
        let _ = stdin.write_all(body).await;
        drop(stdin);
    };
    let exchange = async { tokio::join!(sending, child.wait_with_output()).1 };
    timeout(Duration::from_secs(60), exchange)
        .await
        .expect("cgi-fcgi ends in time")
        .expect("cgi-fcgi can be waited for")
}

async fn cgi_fcgi_gets_its_answers(connect: &str) {
    let answer = cgi_fcgi(connect, "/environ", "a=1", b"").await;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success(), "{:?}: {text}", answer.status);
    assert!(text.starts_with("Status: 200 OK\r\n"), "{text}");
    for line in ["QUERY_STRING=a=1", "PATH_INFO=/environ", "REQUEST_METHOD=GET"] {
        assert!(text.lines().any(|came| came == line), "{line} is not in {text}");
    }

    let upload: Vec<u8> = pattern::blocks(3_000_000).flatten().collect();
    let answer = cgi_fcgi(connect, "/digest", "", &upload).await;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(text.ends_with(&format!("\r\n\r\n{}", table::digest(3_000_000))), "{text}");

    let answer = cgi_fcgi(connect, "/bytes", "n=3000000", b"").await;
    assert!(answer.stdout.ends_with(&upload), "the download is not what was sent");

    let answer = cgi_fcgi(connect, "/stderr", "text=for-the-log", b"").await;
    assert_eq!(String::from_utf8_lossy(&answer.stderr), "for-the-log\n");

    let answer = cgi_fcgi(connect, "/error-before", "", b"").await;
    assert!(answer.stdout.starts_with(b"Status: 500 "), "{}", String::from_utf8_lossy(&answer.stdout));
}

#[tokio::test]
async fn cgi_fcgi_over_a_unix_socket() {
    let scratch = Scratch::new();
    let socket = scratch.path("app.sock");
    let _application = scratch.application(&Listening::Unix(socket.clone()), &[]);
    cgi_fcgi_gets_its_answers(&socket.display().to_string()).await;
}

#[tokio::test]
async fn cgi_fcgi_over_tcp() {
    let scratch = Scratch::new();
    let address = free_address();
    let _application = scratch.application(&Listening::Tcp(address), &[]);
    cgi_fcgi_gets_its_answers(&address.to_string()).await;
}

/// `cgi-fcgi` starts the application itself, with a listening socket as descriptor 0.
#[tokio::test]
async fn cgi_fcgi_starts_the_application() {
    let scratch = Scratch::new();
    let socket = scratch.path("started.sock");
    let application = scratch.path("cgi-bin/app");
    let mut command = program("/usr/bin/cgi-fcgi", "libfcgi-bin");
    command.arg("-start").arg("-connect").arg(&socket).arg(&application);
    let _server = Server::start(&scratch, "cgi-fcgi", command, &[]).ready_at(&socket);
    cgi_fcgi_gets_its_answers(&socket.display().to_string()).await;
}
