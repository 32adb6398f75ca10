//! The rules of PEP 3333, section by section, each a test of its name, against the driver that stands behind every gateway.
//!
//! What Rust's types keep (strings, tuples, argument order) has no test; `middleware::validate` lists it.

use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, Read, Seek, SeekFrom, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::ThreadId;
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use gatespan::application::driver::{BodyTooShort, Call, Response, answer, call};
use gatespan::application::{
    AnyApplication, Application, Body, Cancellation, Class, Environ, Error, Errors, Frame, Frames, Head, HeadError,
    Input, InputError, Log, Pool, PoolConfig, PoolFull, Source, StartError, StartResponse, Variables, Write, blocking,
    class,
};
use gatespan::protocol::fastcgi::Role;

const TYPE: [(&str, &str); 1] = [("Content-Type", "text/plain")];

fn environ() -> Environ {
    environ_for("GET")
}

fn environ_for(method: &str) -> Environ {
    Environ::new(Variables::from_iter([("REQUEST_METHOD", method), ("PATH_INFO", "/")]))
}

/// An application of the closure's first argument each time it is called.
fn app<R, B>(function: impl Fn(Environ, StartResponse) -> R + Send + Sync + 'static) -> AnyApplication
where
    R: Future<Output = Result<B, Error>> + Send + 'static,
    B: Into<Body> + 'static,
{
    AnyApplication::new(function)
}

/// The whole response, and the close of its body, as a gateway has it.
async fn collect(application: impl Application, environ: Environ) -> Result<(Head, Bytes), Error> {
    let Response { head, mut body } = call(application, environ).await?;
    let collected = body.read_to_end(1 << 20).await;
    body.close().await;
    Ok((head, collected?))
}

async fn text(application: impl Application) -> String {
    let (_, body) = collect(application, environ()).await.expect("a response");
    String::from_utf8(body.into()).expect("text")
}

/// What happened, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn tell(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn count(&self, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|told| *told == what).count()
    }

    fn list(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Log for Told {
    fn write(&self, text: &[u8]) {
        self.tell(String::from_utf8_lossy(text));
    }
}

/// A body whose frames are given, whose `close()` takes two polls and is told, and which panics if it is asked for more than a server may.
struct Listed {
    frames: VecDeque<Result<Frame, Error>>,
    told: Told,
    over: bool,
    closing: bool,
}

fn listed(told: &Told, frames: impl IntoIterator<Item = Result<Frame, Error>>) -> Body {
    Body::frames(Listed { frames: frames.into_iter().collect(), told: told.clone(), over: false, closing: false })
}

fn data(text: &'static str) -> Result<Frame, Error> {
    Ok(Frame::Data(text.into()))
}

impl Frames for Listed {
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        assert!(!self.over && !self.closing, "asked for a frame after the end");
        let frame = self.frames.pop_front();
        self.over = !matches!(frame, Some(Ok(_)));
        self.told.tell("next");
        Poll::Ready(frame)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.closing, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.told.tell("close");
        Poll::Ready(())
    }
}

mod the_application_side {
    use super::*;

    async fn function(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        start_response.start("200 OK", TYPE)?;
        Ok(Body::iter([environ.method().to_vec(), b" function".to_vec()]))
    }

    struct Value {
        greeting: &'static str,
    }

    impl Application for Value {
        async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
            start_response.start("200 OK", TYPE)?;
            Ok(Body::iter([environ.method().to_vec(), self.greeting.into()]))
        }
    }

    /// PEP 3333's `AppClass`: `start_response` is called by the first iteration.
    struct AppClass {
        environ: Environ,
        start_response: Option<StartResponse>,
        step: u8,
    }

    impl Class for AppClass {
        fn new(environ: Environ, start_response: StartResponse) -> Self {
            Self { environ, start_response: Some(start_response), step: 0 }
        }

        async fn next(&mut self) -> Option<Result<Bytes, Error>> {
            if let Some(Err(error)) = self.start_response.take().map(|start| start.start("200 OK", TYPE)) {
                return Some(Err(error));
            }
            self.step += 1;
            match self.step {
                1 => Some(Ok(Bytes::copy_from_slice(self.environ.method()))),
                2 => Some(Ok(" class".into())),
                _ => None,
            }
        }
    }

    fn blocks(environ: Environ, start_response: StartResponse) -> Result<Vec<Vec<u8>>, Error> {
        start_response.start("200 OK", TYPE)?;
        Ok(vec![environ.method().to_vec(), b" blocking".to_vec()])
    }

    fn forms() -> [(&'static str, AnyApplication); 4] {
        [
            ("function", AnyApplication::new(function)),
            ("value", AnyApplication::new(Value { greeting: " value" })),
            ("class", AnyApplication::new(class::<AppClass>())),
            ("blocking", AnyApplication::new(blocking(blocks))),
        ]
    }

    #[tokio::test]
    async fn a_server_must_not_depend_on_what_kind_of_callable_was_provided() {
        for (form, app) in forms() {
            let (head, body) = collect(app, environ()).await.unwrap();
            assert_eq!(head.status.to_string(), "200 OK");
            assert_eq!(head.headers.get("content-type"), Some(&b"text/plain"[..]));
            assert_eq!(body, format!("GET {form}"));
        }
    }

    #[tokio::test]
    async fn application_objects_must_be_able_to_be_invoked_more_than_once() {
        for (form, app) in forms() {
            for method in ["GET", "POST"] {
                let (_, body) = collect(app.clone(), environ_for(method)).await.unwrap();
                assert_eq!(body, format!("{method} {form}"));
            }
            let (first, second) = tokio::join!(collect(app.clone(), environ()), collect(app, environ()));
            assert_eq!(first.unwrap().1, second.unwrap().1);
        }
    }

    #[tokio::test]
    async fn the_body_may_be_anything_that_iterates_over_byte_strings() {
        fn start(start_response: StartResponse) -> Result<(), Error> {
            start_response.start("200 OK", TYPE).map(drop)
        }
        for (body, app) in [
            ("text", app(async |_, sr| start(sr).map(|()| "text"))),
            ("string", app(async |_, sr| start(sr).map(|()| String::from("string")))),
            ("vec", app(async |_, sr| start(sr).map(|()| b"vec".to_vec()))),
            ("", app(async |_, sr| start(sr))),
            ("list", app(async |_, sr| start(sr).map(|()| Body::iter(["li", "", "st"])))),
            ("stream", app(async |_, sr| start(sr).map(|()| Body::stream(tokio_stream::iter(["str", "eam"]))))),
            ("reader", app(async |_, sr| start(sr).map(|()| Body::reader(&b"reader"[..])))),
        ] {
            assert_eq!(text(app).await, body);
        }
    }

    #[tokio::test]
    async fn the_iterable_may_be_empty() {
        let empty = app(async |_, start_response: StartResponse| start_response.start("200 OK", TYPE).map(drop));
        let (head, body) = collect(empty, environ()).await.unwrap();
        assert_eq!((head.headers.get("Content-Length"), &*body), (Some(&b"0"[..]), &b""[..]));
    }
}

mod middleware {
    use super::*;

    #[tokio::test]
    async fn middleware_hands_environ_and_start_response_on() {
        let inner = app(async |environ: Environ, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?;
            Ok(environ.get("the_app.configval1").unwrap_or_default().to_vec())
        });
        // PEP 3333, "Application Configuration", its `new_app`.
        let outer = app(move |mut environ: Environ, start_response| {
            let inner = inner.clone();
            async move {
                environ.set("the_app.configval1", "something")?;
                inner.call(environ, start_response).await
            }
        });
        assert_eq!(text(outer).await, "something");
    }

    #[tokio::test]
    async fn middleware_may_change_the_head_by_wrapping_start_response() {
        let inner = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", [("Content-Type", "text/plain"), ("X-Secret", "1")])?;
            Ok("body")
        });
        let outer = app(move |environ, start_response: StartResponse| {
            let inner = inner.clone();
            let start_response = start_response.wrap(|head| {
                head.headers.remove("x-secret");
                head.headers.push("X-Seen", head.status.code().to_string());
                Ok(())
            });
            async move { inner.call(environ, start_response).await }
        });
        let (head, _) = collect(outer, environ()).await.unwrap();
        assert_eq!((head.headers.get("X-Secret"), head.headers.get("X-Seen")), (None, Some(&b"200"[..])));
    }

    #[tokio::test]
    async fn a_wrapped_start_response_sees_every_head_of_a_repeated_call() {
        let told = Told::default();
        let list = told.clone();
        let outer = app(move |_, start_response: StartResponse| {
            let list = list.clone();
            let start_response = start_response.wrap(move |head| {
                list.tell(head.status.to_string());
                Ok(())
            });
            async move {
                start_response.start("200 Froody", TYPE)?;
                start_response.restart("500 Oops", TYPE, Error::new("why"))?;
                Ok("error body")
            }
        });
        assert_eq!(text(outer).await, "error body");
        assert_eq!(told.list(), ["200 Froody", "500 Oops"]);
    }

    #[tokio::test]
    async fn what_middleware_refuses_is_the_error_of_the_call() {
        let outer = app(async |_, start_response: StartResponse| {
            let start_response = start_response.wrap(|_| Err(Error::new("not here").with_status(403)));
            start_response.start("200 OK", TYPE)?;
            Ok("body")
        });
        let error = collect(outer, environ()).await.unwrap_err();
        assert_eq!((error.status(), error.to_string()), (403, "not here".into()));
    }

    #[tokio::test]
    async fn sub_requests_have_no_input_and_the_same_variables() {
        let inner = app(async |mut environ: Environ, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?;
            let input = environ.input().read_to_end(99).await?;
            Ok(format!("{}:{}", environ.path_info().escape_ascii(), input.escape_ascii()))
        });
        let outer = app(move |environ: Environ, start_response: StartResponse| {
            let inner = inner.clone();
            async move {
                let (_, first) = collect(inner.clone(), environ.without_input()).await?;
                let (_, second) = collect(inner.clone(), environ).await?;
                start_response.start("200 OK", TYPE)?;
                Ok(Body::iter([first, " ".into(), second]))
            }
        });
        let (_, body) = collect(outer, environ().with_input(Input::from_bytes("input"))).await.unwrap();
        assert_eq!(body, "/: /:input");
    }

    #[tokio::test]
    async fn middleware_must_not_block_iteration_and_passes_blocks_and_close_on() {
        let told = Told::default();
        let list = told.clone();
        let inner = app(move |_, start_response: StartResponse| {
            let body = listed(&list, [data("a"), Ok(Frame::Flush), data("b")]);
            async move { start_response.start("200 OK", TYPE).map(|_| body) }
        });
        let outer = app(move |environ, start_response: StartResponse| {
            let inner = inner.clone();
            async move { call(inner, environ).await?.pass_on(&start_response) }
        });
        let mut response = call(outer, environ()).await.unwrap();
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(a))) if a == "a"));
        assert_eq!(told.list(), ["next"]);
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Flush))));
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(b))) if b == "b"));
        assert!(response.body.next().await.is_none());
        assert_eq!(told.list(), ["next", "next", "next", "next", "close"]);
    }
}

mod specification_details {
    use super::*;

    #[tokio::test]
    async fn the_next_block_is_asked_for_only_when_the_one_before_was_taken() {
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, start_response: StartResponse| {
            let body = listed(&list, [data("a"), data("b"), data("c")]);
            async move { start_response.start("200 OK", TYPE).map(|_| body) }
        });
        let mut response = call(app, environ()).await.unwrap();
        // The first was needed for the head.
        for taken in 1..=3 {
            response.body.next().await.unwrap().unwrap();
            assert_eq!(told.count("next"), taken);
        }
    }

    #[tokio::test]
    async fn yielded_byte_strings_are_binary_and_line_endings_are_not_altered() {
        let bytes: Vec<u8> = (0..=255).chain(*b"\r\n\n\r\0\r\n").collect();
        let copy = bytes.clone();
        let app = app(move |_, start_response: StartResponse| {
            let copy = copy.clone();
            async move { start_response.start("200 OK", TYPE).map(|_| copy) }
        });
        assert_eq!(collect(app, environ()).await.unwrap().1, bytes);
    }

    #[tokio::test]
    async fn a_length_that_is_certain_is_relied_upon() {
        let one = app(async |_, start_response: StartResponse| start_response.start("200 OK", TYPE).map(|_| "four"));
        assert_eq!(collect(one, environ()).await.unwrap().0.headers.get("Content-Length"), Some(&b"4"[..]));
        let many = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", TYPE).map(|_| Body::iter(["fo", "ur"]))
        });
        assert_eq!(collect(many, environ()).await.unwrap().0.headers.get("Content-Length"), None);
    }

    #[tokio::test]
    async fn start_response_must_be_called_before_the_first_body_byte_string() {
        let told = Told::default();
        let list = told.clone();
        let never = app(move |_, _| std::future::ready(Ok(listed(&list, [data("data")]))));
        let error = collect(never, environ()).await.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(StartError::Never)), "{error}");
        assert_eq!(told.count("close"), 1);
        let empty = app(async |_, _| Ok(()));
        assert_eq!(collect(empty, environ()).await.unwrap_err().status(), 500);
    }

    #[tokio::test]
    async fn start_response_may_be_called_by_the_first_iteration() {
        let app = app(async |_, start_response: StartResponse| {
            let mut step = 0;
            Ok(Body::iter(std::iter::from_fn(move || {
                step += 1;
                match step {
                    1 => Some(Ok("")),
                    2 => Some(start_response.start("202 Accepted", TYPE).map(|_| "body")),
                    _ => None,
                }
            })))
        });
        let (head, body) = collect(app, environ()).await.unwrap();
        assert_eq!((head.status.code(), &*body), (202, &b"body"[..]));
    }

    /// The ways out of a response, each with what the body had and what the gateway does.
    #[tokio::test]
    async fn close_must_be_called_exactly_once_on_completion_error_and_disconnect() {
        type Frames = fn() -> Vec<Result<Frame, Error>>;
        let whole: Frames = || vec![data("a"), data("b")];
        let fails: Frames = || vec![data("a"), Err(Error::new("failed"))];
        let fails_at_once: Frames = || vec![Err(Error::new("failed"))];
        for (method, frames, way) in [
            ("GET", whole, "end"),
            ("GET", whole, "cut"),
            ("GET", fails, "error"),
            ("GET", fails_at_once, "error before the head"),
            ("HEAD", whole, "end"),
            ("HEAD", whole, "cut"),
        ] {
            let told = Told::default();
            let list = told.clone();
            let app = app(move |_, start_response: StartResponse| {
                let (body, list) = (listed(&list, frames()), list.clone());
                let body = body.on_close(move || list.tell("on_close"));
                async move { start_response.start("200 OK", TYPE).map(|_| body) }
            });
            match call(app, environ_for(method)).await {
                Ok(mut response) => {
                    while way != "cut"
                        && let Some(Ok(_)) = response.body.next().await
                    {}
                    response.body.close().await;
                }
                Err(_) => assert_eq!(way, "error before the head"),
            }
            assert_eq!((told.count("close"), told.count("on_close")), (1, 1), "{method} {way}");
        }
    }

    #[tokio::test]
    async fn dropping_is_the_last_resort_of_close() {
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, start_response: StartResponse| {
            let list = list.clone();
            async move {
                start_response.start("200 OK", TYPE)?;
                Ok(Body::iter(["a", "b"]).on_close(move || list.tell("close")))
            }
        });
        let mut response = call(app, environ()).await.unwrap();
        response.body.next().await.unwrap().unwrap();
        drop(response);
        assert_eq!(told.list(), ["close"]);
    }

    #[tokio::test]
    async fn a_client_that_leaves_before_the_head_has_the_body_closed() {
        struct Stalls(Told);
        impl Frames for Stalls {
            fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
                Poll::Pending
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
                self.0.tell("close");
                Poll::Ready(())
            }
        }
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, _| std::future::ready(Ok(Body::frames(Stalls(list.clone())))));
        let mut call = Call::new(app, environ());
        assert!(poll!(Box::pin(call.response())).is_pending());
        call.close().await;
        assert_eq!(told.list(), ["close"]);
    }
}

mod environ_variables {
    use super::*;

    #[test]
    fn variables_that_are_missing_or_empty_are_both_allowed() {
        let environ = Environ::new(Variables::from_iter([("CONTENT_LENGTH", ""), ("QUERY_STRING", "")]));
        assert_eq!(
            (environ.query_string(), environ.path_info(), environ.script_name()),
            (&b""[..], &b""[..], &b""[..])
        );
        assert_eq!(environ.get("CONTENT_LENGTH"), Some(&b""[..]));
        assert_eq!(environ.get("CONTENT_TYPE"), None);
        assert!(environ.meta().content_length().unwrap().is_none());
    }

    #[test]
    fn http_variables_correspond_to_the_request_headers() {
        let environ =
            Environ::new(Variables::from_iter([("HTTP_ACCEPT", "a"), ("HTTP_PROXY", "x"), ("CONTENT_TYPE", "t")]));
        assert_eq!(environ.header("accept"), Some(&b"a"[..]));
        assert_eq!(environ.header("Content-Type"), Some(&b"t"[..]));
        assert_eq!((environ.header("proxy"), environ.get("HTTP_PROXY")), (None, None));
    }

    #[test]
    fn the_interface_s_own_variables_are_there() {
        let environ = environ();
        assert_eq!((environ.version(), environ.url_scheme()), ((1, 0), "http"));
        assert_eq!((environ.multithread(), environ.multiprocess(), environ.run_once()), (true, true, false));
        for value in ["on", "ON", "1", "yes"] {
            assert_eq!(Environ::new(Variables::from_iter([("HTTPS", value)])).url_scheme(), "https", "{value}");
        }
    }

    #[test]
    fn the_application_may_modify_its_environ_in_any_way() {
        let mut environ = environ();
        let copy = environ.without_input();
        environ.set("PATH_INFO", "/other").unwrap();
        environ.variables_mut().remove("REQUEST_METHOD");
        assert_eq!((environ.path_info(), environ.method()), (&b"/other"[..], &b""[..]));
        assert_eq!((copy.path_info(), copy.method()), (&b"/"[..], &b"GET"[..]));
    }

    #[test]
    fn url_reconstruction() {
        let url = |pairs: &[(&str, &str)]| Environ::new(pairs.iter().copied().collect()).url();
        let server =
            [("SERVER_NAME", "example.org"), ("SERVER_PORT", "80"), ("SCRIPT_NAME", "/a b"), ("PATH_INFO", "/c?")];
        assert_eq!(url(&server), "http://example.org/a%20b/c%3F");
        assert_eq!(url(&[("HTTP_HOST", "h:81"), server[0], server[1], ("QUERY_STRING", "q=1")]), "http://h:81?q=1");
        assert_eq!(url(&[server[0], ("SERVER_PORT", "8443"), ("HTTPS", "on")]), "https://example.org:8443");
        assert_eq!(url(&[server[0], ("SERVER_PORT", "443"), ("HTTPS", "on")]), "https://example.org");
    }
}

mod input_and_error_streams {
    use super::*;

    struct Pieces(VecDeque<&'static str>);

    impl Source for Pieces {
        fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(piece.into())))
        }
    }

    fn input(pieces: &[&'static str], length: Option<u64>) -> Input {
        Input::from_source(Pieces(pieces.iter().copied().collect()), length)
    }

    #[tokio::test]
    async fn an_end_of_file_is_simulated_past_content_length() {
        let mut input = input(&["one\ntw", "o\nthree"], Some(8));
        assert_eq!(input.read_to_end(99).await.unwrap(), "one\ntwo\n");
        assert_eq!(input.read(1).await.unwrap(), "");
    }

    #[tokio::test]
    async fn read_readline_and_lines_are_supported() {
        let mut input = input(&["one\ntw", "o\nth", "ree\nrest"], None);
        assert_eq!(input.read(2).await.unwrap(), "on");
        assert_eq!(input.readline(99).await.unwrap(), "e\n");
        let mut lines = input.lines(99);
        assert_eq!(lines.next().await.unwrap().unwrap(), "two\n");
        assert_eq!(lines.next().await.unwrap().unwrap(), "three\n");
        assert_eq!(input.read_to_end(99).await.unwrap(), "rest");
    }

    #[tokio::test]
    async fn an_exhausted_input_gives_empty_byte_strings() {
        for mut input in [Input::empty(), Input::from_bytes(""), input(&[], Some(0)), input(&[], None)] {
            for _ in 0..2 {
                assert_eq!(input.read(9).await.unwrap(), "");
                assert_eq!(input.readline(9).await.unwrap(), "");
                assert_eq!(input.read_to_end(9).await.unwrap(), "");
            }
        }
    }

    #[tokio::test]
    async fn input_has_a_blocking_face() {
        let app = blocking(|mut environ: Environ, start_response| {
            start_response.start("200 OK", TYPE)?;
            let mut input = environ.input().blocking();
            let mut first = String::new();
            input.read_line(&mut first)?;
            let mut rest = String::new();
            input.read_to_string(&mut rest)?;
            Ok([rest, first])
        });
        let (_, body) = collect(app, environ().with_input(input(&["one\ntw", "o"], Some(7)))).await.unwrap();
        assert_eq!(body, "twoone\n");
    }

    #[tokio::test]
    async fn errors_go_to_the_server_s_log_whatever_the_text() {
        let told = Told::default();
        let app = app(async |environ: Environ, start_response: StartResponse| {
            let mut errors = environ.errors();
            writeln!(errors, "caf\u{e9}")?;
            errors.write_all(b"\xff\n")?;
            errors.flush()?;
            start_response.start("200 OK", TYPE).map(drop)
        });
        collect(app, environ().with_errors(Errors::new(Arc::new(told.clone())))).await.unwrap();
        assert_eq!(told.list().concat(), "caf\u{e9}\n\u{fffd}\n");
    }
}

mod the_start_response_callable {
    use super::*;

    #[tokio::test]
    async fn errors_in_the_head_are_raised_while_the_application_is_still_running() {
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, start_response: StartResponse| {
            let list = list.clone();
            async move {
                let refused = start_response.start("200 OK\r\n", TYPE);
                list.tell(refused.unwrap_err().to_string());
                let refused = start_response.restart("200 OK", [("X", "a\r\nb")], Error::new("1"));
                list.tell(refused.unwrap_err().to_string());
                start_response.restart("200 OK", TYPE, Error::new("2")).map(drop)
            }
        });
        collect(app, environ()).await.unwrap();
        assert_eq!(told.list().len(), 2);
    }

    #[tokio::test]
    async fn status_and_headers_must_not_contain_control_characters() {
        let refused = |status: &'static str, name: &'static str, value: &'static str| async move {
            let app = app(move |_, start_response: StartResponse| async move {
                start_response.start(status, [(name, value)]).map(drop)
            });
            collect(app, environ()).await.is_err()
        };
        for (status, name, value) in [
            ("200 OK\r\n", "X", "a"),
            ("200 O\nK", "X", "a"),
            ("200 \0", "X", "a"),
            (" 200 OK", "X", "a"),
            ("200", "X\r\n", "a"),
            ("200", "X:", "a"),
            ("200", "X", "a\r"),
            ("200", "X", "a\nb"),
            ("200", "X", "a\0"),
        ] {
            assert!(refused(status, name, value).await, "{status:?} {name:?} {value:?}");
        }
        assert!(!refused("200 OK", "X", "a").await);
    }

    #[tokio::test]
    async fn hop_by_hop_headers_are_a_fatal_error() {
        for name in [
            "Connection",
            "keep-alive",
            "Proxy-Authenticate",
            "Proxy-Authorization",
            "TE",
            "Trailers",
            "Transfer-Encoding",
            "Upgrade",
        ] {
            let app = app(move |_, start_response: StartResponse| async move {
                start_response.start("200 OK", [(name, "x")]).map(drop)
            });
            let error = collect(app, environ()).await.unwrap_err();
            assert!(matches!(
                error.downcast_ref(),
                Some(StartError::Head(HeadError::HopByHop(_) | HeadError::Field(_)))
            ));
        }
    }

    /// Pieces with a flush before and between them: the head goes with the first that is not empty.
    #[tokio::test]
    async fn headers_must_not_be_sent_until_there_is_body_data() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<&str>(1);
        let receiver = Mutex::new(Some(receiver));
        let app = app(move |_, start_response: StartResponse| {
            let receiver = receiver.lock().unwrap().take().unwrap();
            async move {
                start_response.start("200 OK", TYPE)?;
                Ok(Body::stream(futures_util::stream::unfold(receiver, async |mut receiver| {
                    Some((receiver.recv().await?, receiver))
                })))
            }
        });
        let mut waiting = Box::pin(call(app, environ()));
        assert!(poll!(&mut waiting).is_pending());
        sender.send("").await.unwrap();
        assert!(poll!(&mut waiting).is_pending(), "an empty byte string sends no head");
        sender.send("data").await.unwrap();
        let mut response = waiting.await.unwrap();
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(data))) if data == "data"));
    }

    #[tokio::test]
    async fn headers_are_sent_when_the_iterable_is_exhausted() {
        let app = app(async |_, start_response: StartResponse| {
            start_response.start("404 Not Found", TYPE).map(|_| Body::iter(["", ""]))
        });
        assert_eq!(collect(app, environ()).await.unwrap().0.status.code(), 404);
    }

    #[tokio::test]
    async fn a_flush_sends_the_head_once_there_is_one() {
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, start_response: StartResponse| {
            let body = listed(&list, [Ok(Frame::Flush), data("late")]);
            async move { start_response.start("200 OK", TYPE).map(|_| body) }
        });
        let mut response = call(app, environ()).await.unwrap();
        assert_eq!(told.count("next"), 1);
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Flush))));
        response.body.close().await;
        // Before start_response there is nothing to flush.
        let list = told.clone();
        let never = super::app(move |_, _| std::future::ready(Ok(listed(&list, [Ok(Frame::Flush), data("late")]))));
        assert!(collect(never, environ()).await.is_err());
    }

    #[tokio::test]
    async fn exc_info_replaces_a_head_that_was_not_sent() {
        let app = app(async |_, start_response: StartResponse| {
            let mut write = start_response.start("200 Froody", [("X-Old", "1")])?;
            write.write("old body").await?;
            start_response.restart("500 Oops", TYPE, Error::new("why"))?;
            Ok("error body")
        });
        let (head, body) = collect(app, environ()).await.unwrap();
        assert_eq!((head.status.to_string(), head.headers.get("X-Old")), ("500 Oops".into(), None));
        assert_eq!(body, "error body");
    }

    #[tokio::test]
    async fn exc_info_is_raised_again_once_the_head_was_sent() {
        let app = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?;
            let mut step = 0;
            Ok(Body::iter(std::iter::from_fn(move || {
                step += 1;
                match step {
                    1 => Some(Ok("data")),
                    _ => Some(start_response.restart("500 Oops", TYPE, Error::new("the cause")).map(|_| "page")),
                }
            })))
        });
        let mut response = call(app, environ()).await.unwrap();
        assert_eq!(response.head.status.code(), 200);
        assert_eq!(response.body.read_to_end(99).await.unwrap_err().to_string(), "the cause");
    }

    #[tokio::test]
    async fn a_second_call_without_exc_info_is_a_fatal_error() {
        for first in ["200 OK", "refused"] {
            let app = app(move |_, start_response: StartResponse| async move {
                let _ = start_response.start(first, TYPE);
                start_response.start("200 OK", TYPE).map(drop)
            });
            let error = collect(app, environ()).await.unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(StartError::Again)), "{first}: {error}");
        }
    }
}

mod handling_the_content_length_header {
    use super::*;

    fn of_length(length: &'static str, pieces: &'static [&'static str]) -> (AnyApplication, Told) {
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, start_response: StartResponse| {
            let body = listed(&list, pieces.iter().map(|piece| data(piece)));
            async move { start_response.start("200 OK", [("Content-Length", length)]).map(|_| body) }
        });
        (app, told)
    }

    #[tokio::test]
    async fn no_more_is_sent_than_the_header_allows_and_iteration_stops() {
        let (app, told) = of_length("3", &["ab", "cd", "ef", "gh"]);
        let log = Told::default();
        let environ = environ().with_errors(Errors::new(Arc::new(log.clone())));
        assert_eq!(collect(app, environ).await.unwrap().1, "abc");
        assert_eq!((told.count("next"), told.count("close")), (2, 1));
        assert_eq!(log.list().len(), 1, "{:?}", log.list());
    }

    #[tokio::test]
    async fn too_little_is_an_error_after_the_data() {
        let (app, told) = of_length("5", &["ab", "cd"]);
        let mut response = call(app, environ()).await.unwrap();
        let mut sent = Vec::new();
        let error = loop {
            match response.body.next().await.unwrap() {
                Ok(Frame::Data(data)) => sent.extend(data),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(sent, b"abcd");
        assert!(error.downcast_ref::<BodyTooShort>().is_some(), "{error}");
        response.body.close().await;
        assert_eq!(told.count("close"), 1);
    }

    #[tokio::test]
    async fn what_is_written_counts() {
        let app = app(async |_, start_response: StartResponse| {
            let mut write = start_response.start("200 OK", [("Content-Length", "3")])?;
            write.write("ab").await?;
            Ok("cd")
        });
        assert_eq!(text(app).await, "abc");
    }

    #[tokio::test]
    async fn one_that_is_certain_is_added_and_one_that_was_given_is_kept() {
        let certain = app(async |_, sr: StartResponse| sr.start("200 OK", TYPE).map(|_| "four"));
        let (head, _) = collect(certain, environ()).await.unwrap();
        assert_eq!(head.headers.all("Content-Length").collect::<Vec<_>>(), [b"4"]);
        let (head, _) = collect(of_length("2", &["ab"]).0, environ()).await.unwrap();
        assert_eq!(head.headers.all("Content-Length").collect::<Vec<_>>(), [b"2"]);
        let written = app(async |_, sr: StartResponse| {
            let mut write = sr.start("200 OK", TYPE)?;
            write.write("ab").await?;
            write.write("cd").await?;
            Ok("ef")
        });
        let (head, body) = collect(written, environ()).await.unwrap();
        assert_eq!((head.headers.get("Content-Length"), &*body), (None, &b"abcdef"[..]));
    }

    #[tokio::test]
    async fn no_body_for_head_204_and_304() {
        for (method, status, length) in
            [("HEAD", "200 OK", Some(&b"4"[..])), ("GET", "204 No Content", None), ("GET", "304 Not Modified", None)]
        {
            let told = Told::default();
            let list = told.clone();
            let app = app(move |_, start_response: StartResponse| {
                let body = listed(&list, [data("da"), data("ta")]);
                async move { start_response.start(status, [("Content-Length", "4")]).map(|_| body) }
            });
            let (head, body) = collect(app, environ_for(method)).await.unwrap();
            assert_eq!((head.headers.get("Content-Length"), &*body), (length, &b""[..]), "{method} {status}");
            assert_eq!((told.count("next"), told.count("close")), (1, 1), "{method} {status}");
        }
    }
}

mod buffering_and_streaming {
    use super::*;

    #[tokio::test]
    async fn no_block_may_be_delayed() {
        let app = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", TYPE).map(|_| Body::iter(["one", "two"]))
        });
        let mut response = call(app, environ()).await.unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = response.body.next().await {
            frames.push(match frame.unwrap() {
                Frame::Data(data) => String::from_utf8(data.into()).unwrap(),
                frame => format!("{frame:?}"),
            });
        }
        // An iterator may take long for its next piece: each is followed by a flush, save the last of a known number.
        assert_eq!(frames, ["one", "Flush", "two"]);
    }

    #[tokio::test]
    async fn a_stream_s_piece_is_there_before_the_next_is_ready() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<Result<&str, Error>>();
        sender.send(Ok("first")).unwrap();
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let stream = Mutex::new(Some(stream));
        let app = app(move |_, start_response: StartResponse| {
            let stream = stream.lock().unwrap().take().unwrap();
            async move { start_response.start("200 OK", TYPE).map(|_| Body::stream(stream)) }
        });
        let mut response = call(app, environ()).await.unwrap();
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(data))) if data == "first"));
        assert!(poll!(Box::pin(response.body.next())).is_pending());
        drop(sender);
        assert!(response.body.next().await.is_none());
    }
}

mod the_write_callable {
    use super::*;

    #[tokio::test]
    async fn what_is_written_goes_out_before_what_is_yielded_in_order() {
        let app = app(async |_, start_response: StartResponse| {
            let mut write = start_response.start("200 OK", TYPE)?;
            for n in 0..10 {
                write.write(n.to_string()).await?;
            }
            Ok(Body::iter(["a", "b"]))
        });
        assert_eq!(text(app).await, "0123456789ab");
        let pushes = blocking(|_, start_response| {
            let mut write = start_response.start("200 OK", TYPE)?;
            for n in 0..10 {
                write.write_blocking(n.to_string())?;
            }
            Ok(["a", "b"])
        });
        assert_eq!(text(pushes).await, "0123456789ab");
    }

    #[tokio::test]
    async fn the_first_write_sends_the_head() {
        let app = app(async |_, start_response: StartResponse| -> Result<Body, Error> {
            start_response.start("200 OK", TYPE)?.write("data").await?;
            std::future::pending().await
        });
        let mut response = call(app, environ()).await.unwrap();
        assert_eq!(response.head.status.code(), 200);
        assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(data))) if data == "data"));
        response.body.close().await;
    }

    #[tokio::test]
    async fn a_write_waits_until_the_one_before_was_taken() {
        let told = Told::default();
        let list = told.clone();
        let app = app(move |_, start_response: StartResponse| {
            let list = list.clone();
            async move {
                let mut write = start_response.start("200 OK", TYPE)?;
                for n in 0..3 {
                    write.write(n.to_string()).await?;
                    list.tell(n.to_string());
                }
                Ok(())
            }
        });
        let mut response = call(app, environ()).await.unwrap();
        assert!(told.list().len() <= 2, "{:?}", told.list());
        assert_eq!(response.body.read_to_end(99).await.unwrap(), "012");
        assert_eq!(told.list(), ["0", "1", "2"]);
    }

    #[tokio::test]
    async fn a_write_may_come_from_another_task() {
        let app = app(async |_, start_response: StartResponse| {
            let mut write = start_response.start("200 OK", TYPE)?;
            tokio::spawn(async move {
                for n in 0..5 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    write.write(n.to_string()).await?;
                }
                Ok::<(), gatespan::application::WriteError>(())
            })
            .await??;
            Ok(())
        });
        assert_eq!(text(app).await, "01234");
    }

    #[tokio::test]
    async fn a_write_after_the_end_is_refused() {
        let kept: Arc<Mutex<Option<Write>>> = Arc::default();
        let keep = kept.clone();
        let app = app(move |_, start_response: StartResponse| {
            let keep = keep.clone();
            async move {
                *keep.lock().unwrap() = Some(start_response.start("200 OK", TYPE)?);
                Ok("body")
            }
        });
        assert_eq!(text(app).await, "body");
        let mut write = kept.lock().unwrap().take().unwrap();
        write.write("late").await.unwrap_err();
    }

    #[tokio::test]
    async fn an_empty_write_is_nothing() {
        let app = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?.write("").await?;
            start_response.restart("500 Oops", TYPE, Error::new("still possible")).map(drop)
        });
        assert_eq!(collect(app, environ()).await.unwrap().0.status.code(), 500);
    }
}

mod error_handling {
    use super::*;

    fn log() -> (Environ, Told) {
        let told = Told::default();
        (environ().with_errors(Errors::new(Arc::new(told.clone()))), told)
    }

    #[tokio::test]
    async fn an_error_before_the_head_is_logged_and_answered_without_its_cause() {
        let fails = app(async |_, _| Err::<(), _>(Error::new("the secret cause")));
        let (environ, log) = log();
        let id = environ.request_id().to_owned();
        let mut response = answer(fails, environ).await;
        assert_eq!(response.head.status.code(), 500);
        let page = response.body.read_to_end(999).await.unwrap();
        assert!(!page.escape_ascii().to_string().contains("secret"));
        let log = log.list().concat();
        assert!(log.contains("the secret cause") && log.contains(&id), "{log}");
    }

    #[tokio::test]
    async fn an_error_s_status_is_that_of_its_page() {
        for (code, expected) in [(502, 502), (504, 504), (413, 413), (200, 500)] {
            let fails = app(move |_, _| async move { Err::<(), _>(Error::new("why").with_status(code)) });
            assert_eq!(answer(fails, environ()).await.head.status.code(), expected);
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_500_wherever_it_comes_from() {
        let in_the_call = app(async |_, _| if true { panic!("boom") } else { Ok(()) });
        let in_the_body = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?;
            Ok(Body::iter(std::iter::from_fn(|| -> Option<&str> { panic!("boom") })))
        });
        let in_a_thread = blocking(|_, _| -> Result<[&str; 1], Error> { panic!("boom") });
        for app in [in_the_call, in_the_body, AnyApplication::new(in_a_thread)] {
            let (environ, log) = log();
            assert_eq!(answer(app, environ).await.head.status.code(), 500);
            assert!(log.list().concat().contains("boom"), "{:?}", log.list());
        }
    }

    #[tokio::test]
    async fn a_panic_after_the_head_or_in_close_costs_this_response_only() {
        let after =
            app(async |_, start_response: StartResponse| {
                start_response.start("200 OK", TYPE)?;
                let mut first = true;
                Ok(Body::iter(std::iter::from_fn(move || {
                    if std::mem::take(&mut first) { Some("data") } else { panic!("boom") }
                })))
            });
        let mut response = call(after, environ()).await.unwrap();
        let error = response.body.read_to_end(99).await.unwrap_err();
        assert!(error.to_string().contains("boom"), "{error}");
        response.body.close().await;
        let in_close = app(async |_, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?;
            Ok(Body::from("data").on_close(|| panic!("boom")))
        });
        assert_eq!(text(in_close).await, "data");
    }

    #[tokio::test]
    async fn a_client_that_leaves_cancels() {
        let cancellation = Cancellation::default();
        let environ = environ().with_request(Role::Responder, 1, cancellation.clone());
        let waits = app(async |environ: Environ, start_response: StartResponse| {
            start_response.start("200 OK", TYPE)?.write("data").await?;
            environ.cancellation().cancelled().await;
            Ok("told")
        });
        let mut response = call(waits, environ).await.unwrap();
        response.body.next().await.unwrap().unwrap();
        assert!(poll!(Box::pin(response.body.next())).is_pending());
        cancellation.cancel();
        assert_eq!(response.body.read_to_end(99).await.unwrap(), "told");
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_drops_the_application_s_future() {
        struct Dropped(Told);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.tell("dropped");
            }
        }
        let told = Told::default();
        let list = told.clone();
        let waits = app(move |_, _| {
            let dropped = Dropped(list.clone());
            async move {
                std::future::pending::<()>().await;
                drop(dropped);
                Ok(())
            }
        });
        let mut waiting = Box::pin(call(waits, environ()));
        assert!(poll!(&mut waiting).is_pending());
        drop(waiting);
        assert_eq!(told.list(), ["dropped"]);
    }
}

mod thread_support {
    use super::*;

    /// An iterator that may not leave its thread, and says where it was used.
    struct Local {
        pieces: Rc<Mutex<VecDeque<&'static str>>>,
        threads: Arc<Mutex<HashSet<ThreadId>>>,
        closed: Arc<AtomicUsize>,
    }

    impl Local {
        fn here(&self) {
            self.threads.lock().unwrap().insert(std::thread::current().id());
        }
    }

    impl Iterator for Local {
        type Item = &'static str;
        fn next(&mut self) -> Option<&'static str> {
            self.here();
            self.pieces.lock().unwrap().pop_front()
        }
    }

    impl Drop for Local {
        fn drop(&mut self) {
            self.here();
            self.closed.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_blocking_request_stays_on_one_thread_from_its_call_to_its_close() {
        let (threads, closed) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(AtomicUsize::new(0)));
        let (seen, counter) = (threads.clone(), closed.clone());
        let app = blocking(move |_, start_response| {
            let pieces = Rc::new(Mutex::new(VecDeque::from(["a", "b", "c"])));
            let local = Local { pieces, threads: seen.clone(), closed: counter.clone() };
            local.here();
            assert!(std::thread::current().name().unwrap().starts_with("app-"));
            start_response.start("200 OK", TYPE)?;
            Ok(local)
        });
        assert_eq!(text(app.clone()).await, "abc");
        assert_eq!((threads.lock().unwrap().len(), closed.load(Ordering::SeqCst)), (1, 1));
        assert!(!threads.lock().unwrap().contains(&std::thread::current().id()));
        // Cut in the middle.
        let mut response = call(app, environ()).await.unwrap();
        response.body.next().await.unwrap().unwrap();
        response.body.close().await;
        assert_eq!(closed.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_single_threaded_application_can_be_served() {
        let pool = Pool::new(PoolConfig { threads: 1, queue: 100, ..PoolConfig::default() });
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now, peak) = (inside.clone(), most.clone());
        let app = blocking(move |_, start_response| {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            now.fetch_sub(1, Ordering::SeqCst);
            start_response.start("200 OK", TYPE)?;
            Ok(["ok"])
        })
        .on(pool);
        let requests = (0..20).map(|_| text(app.clone()));
        assert!(futures_util::future::join_all(requests).await.iter().all(|text| text == "ok"));
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    #[expect(clippy::await_holding_lock, reason = "the lock is a gate for other threads: no task waits for it")]
    async fn a_pool_that_is_full_answers_503() {
        let pool = Pool::new(PoolConfig { threads: 1, queue: 1, ..PoolConfig::default() });
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().unwrap();
        let inside = gate.clone();
        let app = blocking(move |_, start_response| {
            drop(inside.lock());
            start_response.start("200 OK", TYPE)?;
            Ok(["ok"])
        })
        .on(pool);
        let (mut running, mut waiting) = (Box::pin(text(app.clone())), Box::pin(text(app.clone())));
        assert!(poll!(&mut running).is_pending() && poll!(&mut waiting).is_pending());
        let error = collect(app.clone(), environ()).await.unwrap_err();
        assert!(error.downcast_ref::<PoolFull>().is_some());
        assert_eq!(answer(app, environ()).await.head.status.code(), 503);
        drop(shut);
        assert_eq!((running.await, waiting.await), ("ok".into(), "ok".into()));
    }

    #[tokio::test]
    #[expect(clippy::await_holding_lock, reason = "the lock is a gate for other threads: no task waits for it")]
    async fn a_client_that_leaves_while_it_waits_takes_no_thread() {
        let pool = Pool::new(PoolConfig { threads: 1, queue: 1, ..PoolConfig::default() });
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().unwrap();
        let (inside, calls) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
        let count = calls.clone();
        let app = blocking(move |_, start_response| {
            count.fetch_add(1, Ordering::SeqCst);
            drop(inside.lock());
            start_response.start("200 OK", TYPE)?;
            Ok(["ok"])
        })
        .on(pool);
        let mut running = Box::pin(text(app.clone()));
        assert!(poll!(&mut running).is_pending());
        for _ in 0..3 {
            assert!(poll!(Box::pin(text(app.clone()))).is_pending());
        }
        drop(shut);
        assert_eq!(running.await, "ok");
        assert_eq!(text(app).await, "ok");
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}

mod optional_platform_specific_file_handling {
    use super::*;

    #[tokio::test]
    async fn file_wrapper_sends_a_file_from_where_it_stands() {
        let app = app(async |environ: Environ, start_response: StartResponse| {
            let mut file = tempfile::tempfile()?;
            file.write_all(b"not this, but this")?;
            file.seek(SeekFrom::Start(10))?;
            start_response.start("200 OK", TYPE)?;
            Ok(environ.file_wrapper(file, Some(3))?)
        });
        let mut response = call(app.clone(), environ()).await.unwrap();
        assert_eq!(response.head.headers.get("Content-Length"), Some(&b"8"[..]));
        let mut blocks = Vec::new();
        while let Some(Ok(Frame::Data(block))) = response.body.next().await {
            blocks.push(block);
        }
        assert_eq!(blocks, ["but", " th", "is"]);
    }

    #[tokio::test]
    async fn a_content_length_shorter_than_the_file_is_kept_to() {
        let app = app(async |environ: Environ, start_response: StartResponse| {
            let mut file = tempfile::tempfile()?;
            file.write_all(b"0123456789")?;
            file.rewind()?;
            start_response.start("200 OK", [("Content-Length", "4")])?;
            Ok(environ.file_wrapper(file, None)?)
        });
        assert_eq!(text(app).await, "0123");
    }

    #[tokio::test]
    async fn a_file_that_becomes_shorter_is_an_error() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, "0123456789").unwrap();
        let open = path.reopen().unwrap();
        let open = Mutex::new(Some(open));
        let app = app(move |environ: Environ, start_response: StartResponse| {
            let file = open.lock().unwrap().take().unwrap();
            async move {
                start_response.start("200 OK", TYPE)?;
                Ok(environ.file_wrapper(file, Some(4))?)
            }
        });
        let mut response = call(app, environ()).await.unwrap();
        path.as_file().set_len(4).unwrap();
        assert!(response.body.read_to_end(99).await.is_err());
    }
}
