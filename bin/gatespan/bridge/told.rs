//! Failures in this process's log: behind FastCGI the gateway tells the web server's alone, where the bridge's administrator may not look.

use std::pin::Pin;
use std::task::{Context, Poll};

use gatespan::application::{AnyApplication, Frame, Frames};
use gatespan::{Application, Body, Environ, Error, StartResponse};

/// The application, with a line for each response that it fails to give, or gives in part.
pub(super) fn told(application: AnyApplication) -> impl Application {
    move |environ: Environ, start_response: StartResponse| {
        let (application, request) = (application.clone(), environ.without_input());
        async move {
            match application.call(environ, start_response).await {
                Ok(body) => Ok(Body::frames(Told { body, request })),
                Err(error) => {
                    let (request_id, status) = (request.request_id(), error.status());
                    tracing::error!(request_id, status, cause = %error, "request failed");
                    Err(error)
                }
            }
        }
    }
}

/// A body whose failure is told.
struct Told {
    body: Body,
    request: Environ,
}

impl Frames for Told {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let frame = self.body.poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame
            && !self.request.cancellation().is_cancelled()
        {
            tracing::error!(request_id = self.request.request_id(), cause = %error, "response was cut");
        }
        frame
    }

    fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.body.poll_close(cx)
    }
}
