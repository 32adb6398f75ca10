//! tower and the waist: services as applications, applications as services, and both ends together.
#![cfg(feature = "tower")]

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get, post};
use bytes::Bytes;
use gatespan::application::{
    Application, Body, Environ, Error, Frame, Frames, Headers, Input, Peer, StartResponse, driver,
};
use gatespan::tower::{Connection, EnvironService, InputBody, RequestEnviron, from_service};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::compression::CompressionLayer;
use tower_http::timeout::TimeoutLayer;

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes more than 20 seconds")
}

fn empty() -> Full<Bytes> {
    Full::default()
}

fn environ(variables: &[(&str, &str)]) -> Environ {
    let usual =
        [("REQUEST_METHOD", "GET"), ("SERVER_PROTOCOL", "HTTP/1.1"), ("SERVER_NAME", "a"), ("SERVER_PORT", "80")];
    Environ::new(usual.iter().chain(variables).copied().collect())
}

async fn hello(_: Environ, start_response: StartResponse) -> Result<&'static str, Error> {
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    Ok("hello")
}

// Applications as services.

#[tokio::test]
async fn an_application_is_a_service() {
    let response = EnvironService::new(hello).oneshot(Request::new(empty())).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test]
async fn a_failure_before_the_head_is_a_page_and_after_it_an_error_of_the_body() {
    let before = async |_: Environ, _: StartResponse| Err::<(), _>(Error::new("no").with_status(503));
    let response = EnvironService::new(before).oneshot(Request::new(empty())).await.unwrap();
    assert_eq!(response.status(), 503);
    let after = async |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        Ok::<_, Error>(Body::iter([Ok("some"), Err(std::io::Error::other("no more"))]))
    };
    let response = EnvironService::new(after).oneshot(Request::new(empty())).await.unwrap();
    let cut = response.into_body().collect().await.unwrap_err();
    assert_eq!(cut.to_string(), "the response was cut: no more");
}

#[tokio::test]
async fn the_connection_comes_from_the_extensions_or_the_service() {
    let application = async |environ: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        let mark = environ.extensions().get::<&'static str>().copied().unwrap_or("no mark");
        Ok::<_, Error>(format!("{} {mark}", environ.text("REMOTE_ADDR")?.unwrap_or("nobody")))
    };
    let connection = |address: &str| Connection { peer: Peer::Ip(address.parse().unwrap()), ..Connection::default() };
    let service = EnvironService::new(application).with_connection(connection("192.0.2.1:1"));
    let mut request = Request::new(empty());
    request.extensions_mut().insert(connection("192.0.2.2:2"));
    request.extensions_mut().insert("marked");
    for (request, expected) in [(Request::new(empty()), "192.0.2.1 no mark"), (request, "192.0.2.2 marked")] {
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected);
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_cancels_and_closes_its_application() {
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    let closed = Mutex::new(Some(closed));
    let application = move |environ: Environ, start_response: StartResponse| {
        let closed = closed.lock().unwrap().take();
        async move {
            start_response.start("200 OK", ())?;
            let token = environ.cancellation();
            let body = Body::iter(std::iter::repeat("x"));
            Ok::<_, Error>(body.on_close(move || closed.unwrap().send(token.is_cancelled()).unwrap()))
        }
    };
    let response = EnvironService::new(application).oneshot(Request::new(empty())).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert!(within(is_closed).await.unwrap());
}

#[tokio::test]
async fn layers_of_tower_http_serve_an_application() {
    let application = async |environ: Environ, start_response: StartResponse| {
        if environ.path_info() == b"/slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        start_response.start("200 OK", [("Content-Type", "text/plain")])?;
        Ok::<_, Error>("compress me ".repeat(1000))
    };
    let service = ServiceBuilder::new()
        .layer(CompressionLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(200)))
        .service(EnvironService::new(application));
    let request = Request::get("/").header("accept-encoding", "gzip").body(empty()).unwrap();
    let response = service.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let compressed = response.into_body().collect().await.unwrap().to_bytes();
    assert!(compressed.starts_with(b"\x1f\x8b") && compressed.len() < 1000);
    let request = Request::get("/slow").body(empty()).unwrap();
    let response = within(service.oneshot(request)).await.unwrap();
    assert_eq!(response.status(), 504);
}

// Services as applications.

#[tokio::test]
async fn a_router_is_an_application() {
    let router = Router::new().route(
        "/hello/{name}",
        get(async |axum::extract::Path(name): axum::extract::Path<String>| format!("hello {name}")),
    );
    let environ = environ(&[("PATH_INFO", "/hello/b\u{e9}b\u{e9}"), ("REQUEST_URI", "/hello/b%C3%A9b%C3%A9")]);
    let mut response = driver::call(from_service(router), environ).await.unwrap();
    assert_eq!(response.head.status.to_string(), "200 OK");
    assert_eq!(response.head.headers.get("Content-Length"), Some(&b"12"[..]));
    assert_eq!(response.body.read_to_end(100).await.unwrap(), "hello b\u{e9}b\u{e9}".as_bytes());
}

#[tokio::test]
async fn the_uri_is_request_uri_where_it_matches_and_is_built_elsewhere() {
    let router = || Router::new().fallback(async |uri: http::Uri| uri.to_string());
    for (variables, below, expected) in [
        // As the client wrote it.
        (
            vec![("PATH_INFO", "/a b"), ("REQUEST_URI", "/%61%20b?q=%20"), ("QUERY_STRING", "q=%20")],
            false,
            "/%61%20b?q=%20",
        ),
        (vec![("SCRIPT_NAME", "/s"), ("PATH_INFO", "/p"), ("REQUEST_URI", "/s/p")], false, "/s/p"),
        (vec![("PATH_INFO", "/p"), ("REQUEST_URI", "http://host/p?x"), ("QUERY_STRING", "x")], false, "/p?x"),
        // A web server has rewritten it, or says nothing.
        (vec![("PATH_INFO", "/new"), ("REQUEST_URI", "/old")], false, "/new"),
        (vec![("PATH_INFO", "/p"), ("REQUEST_URI", "/p?x"), ("QUERY_STRING", "y")], false, "/p?y"),
        (vec![("SCRIPT_NAME", "/s"), ("PATH_INFO", "/a b/\u{e9}?#")], false, "/s/a%20b/%C3%A9%3F%23"),
        (vec![], false, "/"),
        // Below the script.
        (
            vec![("SCRIPT_NAME", "/s.cgi"), ("PATH_INFO", "/p"), ("REQUEST_URI", "/s.cgi/p?x"), ("QUERY_STRING", "x")],
            true,
            "/p?x",
        ),
        (vec![("SCRIPT_NAME", "/s.cgi"), ("PATH_INFO", "")], true, "/"),
    ] {
        let application = match below {
            true => from_service(router()).below_script_name(),
            false => from_service(router()),
        };
        let mut response = driver::call(application, environ(&variables)).await.unwrap();
        assert_eq!(response.body.read_to_end(200).await.unwrap(), expected, "{variables:?}");
    }
}

#[tokio::test]
async fn headers_are_made_of_variables_repeated_ones_each_for_itself() {
    let router = Router::new().fallback(any(async |headers: HeaderMap| {
        headers.iter().map(|(name, value)| format!("{name}={}\n", value.to_str().unwrap())).collect::<String>()
    }));
    let environ = environ(&[
        ("HTTP_X_A", "1"),
        ("HTTP_HOST", "h"),
        ("CONTENT_TYPE", "text/plain"),
        ("CONTENT_LENGTH", ""),
        ("HTTP_X_A", "2"),
        ("SOME_OTHER", "thing"),
    ]);
    let mut response = driver::call(from_service(router), environ).await.unwrap();
    let body = response.body.read_to_end(1000).await.unwrap();
    assert_eq!(body, "x-a=1\nx-a=2\nhost=h\ncontent-type=text/plain\n");
}

#[tokio::test]
async fn what_no_http_request_can_hold_is_400() {
    for variable in [("HTTP_X", "a\nb"), ("HTTP_X Y", "z"), ("REQUEST_METHOD", "G T"), ("HTTP_", "x")] {
        let called = driver::call(from_service(Router::<()>::new()), environ(&[variable])).await;
        assert_eq!(called.unwrap_err().status(), 400, "{variable:?}");
    }
}

#[tokio::test]
async fn extensions_are_passed_on_with_the_environ() {
    let router = Router::new().fallback(any(async |request: axum::extract::Request| {
        let environ = request.extensions().get::<RequestEnviron>().unwrap().environ();
        let mark = request.extensions().get::<&'static str>().unwrap();
        format!("{mark} {}", environ.text("SERVER_NAME").unwrap().unwrap())
    }));
    let mut environ = environ(&[]);
    environ.extensions_mut().insert("marked");
    let mut response = driver::call(from_service(router), environ).await.unwrap();
    assert_eq!(response.body.read_to_end(100).await.unwrap(), "marked a");
}

/// Ready only after it was asked three times; its clones are not ready at first either.
struct SlowToBeReady {
    asked: usize,
    calls: Arc<AtomicUsize>,
}

impl Clone for SlowToBeReady {
    fn clone(&self) -> Self {
        Self { asked: 0, calls: self.calls.clone() }
    }
}

impl Service<Request<InputBody>> for SlowToBeReady {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.asked += 1;
        if self.asked < 3 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<InputBody>) -> Self::Future {
        assert!(self.asked >= 3, "called before it was ready");
        self.calls.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Response::new(Full::from("ready"))))
    }
}

#[tokio::test]
async fn a_service_is_called_only_when_it_is_ready() {
    let calls = Arc::new(AtomicUsize::new(0));
    let application = from_service(SlowToBeReady { asked: 0, calls: calls.clone() });
    for count in 1..=3 {
        let mut response = driver::call(application.clone(), environ(&[])).await.unwrap();
        assert_eq!(response.body.read_to_end(100).await.unwrap(), "ready");
        assert_eq!(calls.load(Ordering::SeqCst), count);
    }
}

#[tokio::test]
async fn a_services_error_is_the_applications() {
    let service = tower::service_fn(async |_: Request<InputBody>| {
        Err::<Response<Full<Bytes>>, _>(std::io::Error::other("out of order"))
    });
    let error = driver::call(from_service(service), environ(&[])).await.unwrap_err();
    assert_eq!((error.status(), error.to_string().as_str()), (500, "out of order"));
}

#[tokio::test]
async fn a_services_future_is_dropped_when_the_client_leaves() {
    struct Told(Arc<AtomicBool>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let told = dropped.clone();
    let service = tower::service_fn(move |_: Request<InputBody>| {
        let told = Told(told.clone());
        async move {
            let _told = told;
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }
    });
    let mut call = Box::pin(driver::call(from_service(service), environ(&[])));
    poll_fn(|cx| {
        assert!(call.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    assert!(!dropped.load(Ordering::SeqCst));
    drop(call);
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn bodies_stream_through_a_service_piece_by_piece() {
    // Each piece of the request is answered before the next is sent.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    struct Channel(tokio::sync::mpsc::Receiver<Bytes>);
    impl gatespan::application::Source for Channel {
        fn poll_chunk(
            &mut self,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Bytes, gatespan::application::InputError>>> {
            self.0.poll_recv(cx).map(|chunk| chunk.map(Ok))
        }
    }
    let echo = post(async |request: axum::extract::Request| Response::new(request.into_body()));
    let router = Router::new().route("/", echo);
    let environ = environ(&[("REQUEST_METHOD", "POST"), ("PATH_INFO", "/")])
        .with_input(Input::from_source(Channel(receiver), None));
    // The head comes although the body is still to begin.
    let mut response = within(driver::call(from_service(router), environ)).await.unwrap();
    for piece in ["one", "two", "three"] {
        sender.send(piece.into()).await.unwrap();
        loop {
            match within(response.body.next()).await.unwrap().unwrap() {
                Frame::Data(data) => break assert_eq!(data, piece),
                Frame::Flush => {}
                other => panic!("{other:?}"),
            }
        }
    }
    drop(sender);
    assert!(within(response.body.next()).await.is_none());
}

// Both.

#[tokio::test]
async fn a_router_that_is_an_application_that_is_a_service_answers_as_the_router() {
    let router = Router::new()
        .route(
            "/form",
            post(async |headers: HeaderMap, body: Bytes| {
                let mut response = Response::new(axum::body::Body::from(body));
                *response.status_mut() = StatusCode::CREATED;
                response.headers_mut().append("content-type", "text/css".parse().unwrap());
                for value in headers.get_all("x-in") {
                    response.headers_mut().append("x-out", value.clone());
                }
                for cookie in ["a=1", "b=2", "a=3"] {
                    response.headers_mut().append("set-cookie", cookie.parse().unwrap());
                }
                response
            }),
        )
        .route("/nothing", get(async || StatusCode::NO_CONTENT))
        .route("/text", get(async || "text"));
    let request = |method: &str, uri: &str, body: &'static str| {
        let builder = Request::builder().method(method).uri(uri).header("x-in", "1").header("x-in", "2");
        builder.header("content-length", body.len()).body(Full::from(body)).unwrap()
    };
    for (method, uri, body) in [
        ("POST", "/form?a=b", "some text"),
        ("POST", "/form", ""),
        ("GET", "/nothing", ""),
        ("GET", "/text", ""),
        ("HEAD", "/text", ""),
        ("GET", "/not/there", ""),
        ("PUT", "/form", "x"),
    ] {
        let direct = router.clone().oneshot(request(method, uri, body)).await.unwrap();
        let service = EnvironService::new(from_service(router.clone()));
        let round = service.oneshot(request(method, uri, body)).await.unwrap();
        assert_eq!(direct.status(), round.status(), "{method} {uri}");
        let sorted = |headers: &HeaderMap| {
            let mut fields: Vec<_> = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            // A length of nothing: axum says it even of 204, which RFC 9110 8.6 forbids, and the driver of other empty answers.
            fields.retain(|(name, value)| name != "content-length" || value != "0");
            // Stable: the order within one name counts.
            fields.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
            fields
        };
        assert_eq!(sorted(direct.headers()), sorted(round.headers()), "{method} {uri}");
        let (direct, round) = (direct.into_body().collect().await.unwrap(), round.into_body().collect().await.unwrap());
        assert_eq!(direct.to_bytes(), round.to_bytes(), "{method} {uri}");
    }
}

#[tokio::test]
async fn trailers_pass_through_both() {
    let service = tower::service_fn(async |_: Request<InputBody>| {
        let mut trailers = HeaderMap::new();
        trailers.append("x-sum", "1".parse().unwrap());
        trailers.append("x-sum", "2".parse().unwrap());
        let frames = [
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("data"))),
            Ok(http_body::Frame::trailers(trailers)),
        ];
        Ok::<_, Infallible>(Response::new(StreamBody::new(tokio_stream::iter(frames))))
    });
    let response = EnvironService::new(from_service(service)).oneshot(Request::new(empty())).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers: Vec<_> = collected.trailers().unwrap().get_all("x-sum").iter().collect();
    assert_eq!(trailers, ["1", "2"]);
    assert_eq!(collected.to_bytes(), "data");
}

#[tokio::test]
async fn an_application_passes_its_trailers_on() {
    struct WithTrailers(Vec<Frame>);
    impl Frames for WithTrailers {
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
            Poll::Ready(self.0.pop().map(Ok))
        }
    }
    let application = async |_: Environ, start_response: StartResponse| {
        start_response.start("200 OK", ())?;
        let trailers = Headers::from([("X-Sum", "1")]);
        Ok::<_, Error>(Body::frames(WithTrailers(vec![Frame::Trailers(trailers), Frame::Data("data".into())])))
    };
    let response = EnvironService::new(application).oneshot(Request::new(empty())).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["x-sum"], "1");
}

/// For the compiler: what a gateway asks of an application.
#[test]
fn a_router_can_be_served() {
    fn is_application(_: impl Application) {}
    is_application(from_service(Router::<()>::new()));
}
