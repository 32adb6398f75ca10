//! The waist and tower, both ways: an application as a [`Service`] ([`EnvironService`]), and a service, such as an axum `Router`, as an
//! application ([`from_service`]). Bodies stream in both directions.
//!
//! What tower knows of a request travels in its extensions: they become the environ's ([`Environ::extensions`]) and the other way
//! round. A [`Connection`] among them says who the client is.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use http_body::SizeHint;
use tower_service::Service;

pub use crate::application::message::{Answering, Connection, Cut, HttpBody};

use crate::application::message::{Call, Closing, Described};
use crate::application::target::path_and_query;
use crate::application::{
    Application, Body, Environ, Error, Errors, Frame, Frames, Headers, Input, InputError, Server, StartResponse,
    Status, is_hop_by_hop,
};
use crate::protocol::cgi::{allows_body, default_reason, names};

/// An application as a tower service: for tower's layers, and for servers that take one.
///
/// It is always ready, and never fails: what the application fails with before the head of its response is an error page, after it an
/// error of the body. Cheap to clone.
pub struct EnvironService<A> {
    application: Arc<A>,
    connection: Arc<Described>,
    server: Arc<Server>,
    errors: Errors,
    closing: Closing,
}

impl<A: Application> EnvironService<A> {
    /// That application as a service.
    pub fn new(application: A) -> Self {
        let server = Server { gateway: "tower", multiprocess: false, ..Server::default() };
        Self {
            application: Arc::new(application),
            connection: Arc::new(Connection::default().into()),
            server: Arc::new(server),
            errors: Errors::stderr(),
            closing: Closing::default(),
        }
    }

    /// The same with something to say about the connection of requests that have no [`Connection`] in their extensions.
    #[must_use]
    pub fn with_connection(mut self, connection: Connection) -> Self {
        self.connection = Arc::new(connection.into());
        self
    }

    /// The same with another log.
    #[must_use]
    pub fn with_errors(mut self, errors: Errors) -> Self {
        self.errors = errors;
        self
    }
}

impl<A> Clone for EnvironService<A> {
    fn clone(&self) -> Self {
        Self {
            application: self.application.clone(),
            connection: self.connection.clone(),
            server: self.server.clone(),
            errors: self.errors.clone(),
            closing: self.closing.clone(),
        }
    }
}

impl<A> fmt::Debug for EnvironService<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvironService").field("connection", self.connection.connection()).finish_non_exhaustive()
    }
}

impl<A, B> Service<http::Request<B>> for EnvironService<A>
where
    A: Application,
    B: http_body::Body<Data: Buf, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    type Response = http::Response<HttpBody>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answering {
        let call = Call {
            server: self.server.clone(),
            number: 0,
            errors: self.errors.clone(),
            max_body: None,
            body_timeout: None,
            closing: self.closing.clone(),
            lease: None,
        };
        match request.extensions().get::<Connection>().cloned() {
            Some(connection) => call.begin(self.application.clone(), request, &connection.into()),
            None => call.begin(self.application.clone(), request, &self.connection),
        }
    }
}

/// A service as an application, with whatever gateway: `gatespan::run(from_service(router))`.
///
/// The path that the service sees is PATH_INFO, what lies below the place where a web server has put the program, so that the same router
/// serves as a CGI script, behind FastCGI and on a port of its own; an empty one is `/`. It is written as the client wrote it where
/// REQUEST_URI's path is SCRIPT_NAME and PATH_INFO, and else encoded anew. [`ServiceApplication::with_script_name`] gives the
/// whole path.
///
/// The request's extensions are the environ's, with a [`RequestEnviron`] added, whose [`Environ::script_name`] is what links within the
/// application begin with. The service's future is dropped when the client leaves.
pub fn from_service<S>(service: S) -> ServiceApplication<S> {
    ServiceApplication { service, with_script_name: false }
}

/// See [`from_service`].
#[derive(Debug, Clone)]
pub struct ServiceApplication<S> {
    service: S,
    with_script_name: bool,
}

impl<S> ServiceApplication<S> {
    /// The same with SCRIPT_NAME and PATH_INFO together as the path of its requests: for a service that knows where it is mounted, such
    /// as a router whose paths begin with `/cgi-bin/app`.
    #[must_use]
    pub fn with_script_name(self) -> Self {
        Self { with_script_name: true, ..self }
    }
}

impl<S, B> Application for ServiceApplication<S>
where
    S: Service<http::Request<InputBody>, Response = http::Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: http_body::Body<Data: Buf, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let is_head = environ.method() == b"HEAD";
        let request = request(environ, self.with_script_name)?;
        // The clone that is ready is the one that must be called.
        let mut service = self.service.clone();
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(Error::new)?;
        let response = service.call(request).await.map_err(Error::new)?;
        let (parts, body) = response.into_parts();
        let mut headers: Headers = parts
            .headers
            .iter()
            .filter(|(name, _)| !is_hop_by_hop(name.as_str().as_bytes()))
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        if let Some(len) = body.size_hint().exact()
            && allows_body(parts.status.as_u16(), if is_head { b"HEAD" } else { b"" })
            && !headers.contains("Content-Length")
        {
            headers.push("Content-Length", len.to_string());
        }
        let status = status(parts.status, &parts.extensions)?;
        start_response.start(status, headers)?;
        match body.is_end_stream() {
            true => Ok(Body::empty()),
            false => Ok(Body::frames(ServiceBody { body: Box::pin(body), flushed: false })),
        }
    }
}

#[cfg(feature = "http")]
fn status(code: StatusCode, extensions: &http::Extensions) -> Result<Status, Error> {
    match extensions.get::<hyper::ext::ReasonPhrase>() {
        Some(reason) => Ok(Status::with_reason(code.as_u16(), reason.as_bytes())?),
        None => usual_status(code),
    }
}

#[cfg(not(feature = "http"))]
fn status(code: StatusCode, _: &http::Extensions) -> Result<Status, Error> {
    usual_status(code)
}

fn usual_status(code: StatusCode) -> Result<Status, Error> {
    match code.canonical_reason() {
        Some(reason) if default_reason(code.as_u16()) == "Unassigned" => {
            Ok(Status::with_reason(code.as_u16(), reason)?)
        }
        _ => Ok(code.into()),
    }
}

/// In the extensions of the requests that a service gets: the environ that they were made from.
#[derive(Debug, Clone)]
pub struct RequestEnviron {
    // An environ may hold an input, which only one thread may use at a time.
    environ: Arc<Mutex<Environ>>,
}

impl RequestEnviron {
    /// The environ, without its input and without the extensions that are the request's now.
    pub fn environ(&self) -> Environ {
        self.environ.lock().unwrap_or_else(PoisonError::into_inner).without_input()
    }
}

/// The request that a service is given for an environ.
fn request(mut environ: Environ, with_script_name: bool) -> Result<http::Request<InputBody>, Error> {
    let refuse = |name: &str, value: &[u8]| {
        let end = value.len().min(64);
        Error::new(format!("{name} can't be part of an HTTP request: \"{}\"", value[..end].escape_ascii()))
            .with_status(400)
    };
    let method = Method::from_bytes(environ.method()).map_err(|_| refuse(names::REQUEST_METHOD, environ.method()))?;
    let path_and_query = path_and_query(&environ, with_script_name);
    let uri = Uri::from_maybe_shared(Bytes::from(path_and_query))
        .map_err(|_| refuse(names::REQUEST_URI, environ.get(names::REQUEST_URI).unwrap_or_default()))?;
    let version = match environ.get(names::SERVER_PROTOCOL) {
        Some(b"HTTP/1.0") => Version::HTTP_10,
        Some(b"HTTP/2" | b"HTTP/2.0") => Version::HTTP_2,
        Some(b"HTTP/3" | b"HTTP/3.0") => Version::HTTP_3,
        _ => Version::HTTP_11,
    };
    let mut headers = HeaderMap::with_capacity(environ.variables().pairs().len());
    let mut field_name = Vec::with_capacity(32);
    for (name, value) in environ.variables().pairs().iter() {
        let of_field = match name {
            // Empty is unset (RFC 3875 4.1.2, 4.1.3).
            b"CONTENT_TYPE" | b"CONTENT_LENGTH" if value.is_empty() => continue,
            b"CONTENT_TYPE" | b"CONTENT_LENGTH" => name,
            _ => match name.strip_prefix(b"HTTP_") {
                Some(field) => field,
                None => continue,
            },
        };
        field_name.clear();
        field_name.extend(of_field.iter().map(|byte| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }));
        let field_name = HeaderName::from_bytes(&field_name).map_err(|_| refuse("the name of a variable", name))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| refuse(&String::from_utf8_lossy(name), value))?;
        match name.starts_with(b"HTTP_") {
            true => drop(headers.append(field_name, value)),
            // Of one that is repeated the last wins.
            false => drop(headers.insert(field_name, value)),
        }
    }
    let mut request = http::Request::new(InputBody { input: environ.take_input() });
    *request.extensions_mut() = std::mem::take(environ.extensions_mut());
    if let Some(redirects) = environ.local_redirects() {
        request.extensions_mut().insert(redirects.clone());
    }
    request.extensions_mut().insert(RequestEnviron { environ: Arc::new(Mutex::new(environ)) });
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(request)
}

/// An environ's input as the body of a request.
#[derive(Debug)]
pub struct InputBody {
    input: Input,
}

impl From<InputBody> for Input {
    fn from(body: InputBody) -> Self {
        body.input
    }
}

impl http_body::Body for InputBody {
    type Data = Bytes;
    type Error = InputError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, InputError>>> {
        use futures_core::Stream;
        let chunk = ready!(Pin::new(&mut self.input).poll_next(cx));
        Poll::Ready(chunk.map(|chunk| chunk.map(http_body::Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.input.remaining() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.input.remaining().map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// The body of a service's response as an application's.
struct ServiceBody<B> {
    body: Pin<Box<B>>,
    /// The head has been sent, or has had its chance.
    flushed: bool,
}

impl<B> Frames for ServiceBody<B>
where
    B: http_body::Body<Data: Buf, Error: Into<Box<dyn StdError + Send + Sync>>> + Send,
{
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        loop {
            let Poll::Ready(frame) = self.body.as_mut().poll_frame(cx) else {
                // A service has given its head: it goes out even where the body takes its time.
                if !std::mem::replace(&mut self.flushed, true) {
                    return Poll::Ready(Some(Ok(Frame::Flush)));
                }
                return Poll::Pending;
            };
            self.flushed = true;
            return Poll::Ready(match frame {
                None => None,
                Some(Err(error)) => Some(Err(Error::new(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(mut data) => Some(Ok(Frame::Data(data.copy_to_bytes(data.remaining())))),
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => Some(Ok(Frame::Trailers(fields(&trailers)))),
                        // A kind of frame that is not known yet.
                        Err(_) => continue,
                    },
                },
            });
        }
    }
}

fn fields(map: &HeaderMap) -> Headers {
    map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}
