//! Floor 1, the waist: PEP 3333's application interface in Rust's idiom.
//!
//! [`Application`] is what is called; [`Environ`] what it is told, [`Input`] and [`Errors`] with it; [`StartResponse`] how it names the
//! head; [`Body`] what it gives back. [`driver::call`] turns all that into a head and a body, once for every gateway.

mod callable;
mod environ;
mod input;
mod errors;
mod start_response;
mod head;
mod body;
mod error;
mod class;
mod blocking;
mod forwarded;
mod local_redirect;
mod upgrade;
pub(crate) mod conditional;
pub(crate) mod for_ever;
pub mod driver;
#[cfg(any(feature = "http", feature = "tower"))]
pub(crate) mod message;
#[cfg(any(feature = "tower", feature = "upstream-http"))]
pub(crate) mod target;

pub use blocking::{BlockingApplication, Pool, PoolConfig, PoolFull, blocking};
pub use body::{Body, DEFAULT_BLOCK_SIZE, FileRange, FileReader, Frame, Frames, IntoChunk};
pub use callable::{AnyApplication, Application};
pub use class::{Class, ClassApplication, class};
#[cfg(feature = "upstream-cgi")]
pub(crate) use environ::PATH;
#[cfg(any(feature = "upstream-files", feature = "upstream-http"))]
pub(crate) use environ::encode_path;
#[cfg(feature = "fastcgi")]
pub(crate) use environ::{Cancellable, Cancelling, Facts};
pub use environ::{Cancellation, Environ, NotText, Peer, Server, VariableError, Variables};
pub use error::Error;
pub use errors::{Errors, Log};
pub use forwarded::ForwardedFor;
#[cfg(any(feature = "tower", feature = "upstream-cgi", feature = "upstream-fastcgi", feature = "upstream-http"))]
pub(crate) use head::is_hop_by_hop;
pub use head::{Head, HeadError, Headers, Status};
pub use input::{BlockingInput, Input, InputError, Lines, Source};
pub use local_redirect::LocalRedirects;
pub use start_response::{Event, StartError, StartResponse, Write, WriteError};
pub use upgrade::Upgrade;
