//! Addresses: one grammar for where requests come from and where they go.
//!
//! ```text
//! http://HOST:PORT   http:/path/to.sock   http:@abstract   http:fd   https://HOST[:PORT]
//! fastcgi://HOST:PORT   fastcgi:/path/to.sock   fastcgi:@abstract   fastcgi:fd   fastcgi:exec:/path/program
//! cgi:   cgi:/folder/   cgi:/path/program   file:/folder   app:NAME
//! ```
//!
//! Paths may be relative; a socket called `fd` is `./fd`. IPv6 addresses stand in brackets.

mod network;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use network::{Network, NetworkError, Trusted};

/// One end of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// An HTTP server, ours or another's.
    Http(Endpoint),
    /// An HTTP server behind TLS; only as something to forward to.
    Https(Endpoint),
    /// A FastCGI server, ours or another's.
    FastCgi(Endpoint),
    /// A FastCGI program that is started with its socket on descriptor 0, and watched.
    FastCgiProgram(PathBuf),
    /// This process is a CGI script.
    CgiProcess,
    /// A CGI program, or a folder of them; what it is on disk decides.
    Cgi(PathBuf),
    /// A folder of files.
    File(PathBuf),
    /// An application that is built in.
    App(String),
}

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// A name or address; IPv6 without its brackets.
        host: String,
        /// The port; 0 lets the system choose one.
        port: u16,
    },
    /// A Unix socket in the file system.
    Unix(PathBuf),
    /// A Unix socket in Linux's abstract name space, without the leading `@`.
    Abstract(String),
    /// A socket that was handed over: descriptor 0, or the first of LISTEN_FDS.
    Inherited,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// No scheme at all.
    #[error("expected an address such as {SCHEMES}, got \"{0}\"")]
    NoScheme(String),
    /// A scheme that there is not.
    #[error("expected an address such as {SCHEMES}, got the scheme \"{0}\"")]
    UnknownScheme(String),
    /// Nothing after the scheme.
    #[error("expected {expected} after \"{scheme}:\", got nothing")]
    Empty {
        /// The scheme.
        scheme: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// No host before the port.
    #[error("expected a host in \"{0}\"")]
    NoHost(String),
    /// No port where one is needed.
    #[error("expected HOST:PORT, got \"{0}\" without a port")]
    NoPort(String),
    /// A port where a socket's path would stand: the two slashes are missing.
    #[error("expected // before HOST:PORT, or ./ before a socket's name, got \"{0}\"")]
    NoSlashes(String),
    /// A port that is no number up to 65,535.
    #[error("expected a port from 0 to 65535, got \"{0}\"")]
    Port(String),
    /// An IPv6 address that is not in brackets, or brackets that are not closed.
    #[error("expected an IPv6 address in brackets, such as [::1]:9000, got \"{0}\"")]
    Brackets(String),
    /// Something after the port.
    #[error("expected nothing after the port, got \"{0}\": what to serve there is said elsewhere")]
    Path(String),
    /// NUL, in which no path can end.
    #[error("an address can't hold NUL")]
    Nul,
    /// HTTPS as something other than a host.
    #[error("expected https://HOST, got \"https:{0}\"")]
    Https(String),
}

const SCHEMES: &str =
    "http://127.0.0.1:8080, fastcgi:/run/app.sock, fastcgi://127.0.0.1:9000, cgi:/path, file:/folder or app:NAME";

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('\0') {
            return Err(AddressError::Nul);
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| AddressError::NoScheme(text.into()))?;
        let some = |scheme, expected| match rest {
            "" => Err(AddressError::Empty { scheme, expected }),
            rest => Ok(rest),
        };
        match scheme {
            "http" => Ok(Self::Http(Endpoint::parse(some("http", "//HOST:PORT or a socket's path")?, Some(80))?)),
            "https" => match rest.starts_with("//") {
                true => Ok(Self::Https(Endpoint::parse(rest, Some(443))?)),
                false => Err(AddressError::Https(rest.into())),
            },
            "fastcgi" => match some("fastcgi", "//HOST:PORT or a socket's path")?.strip_prefix("exec:") {
                Some("") => Err(AddressError::Empty { scheme: "fastcgi:exec", expected: "a program's path" }),
                Some(program) => Ok(Self::FastCgiProgram(program.into())),
                None => Ok(Self::FastCgi(Endpoint::parse(rest, None)?)),
            },
            "cgi" if rest.is_empty() => Ok(Self::CgiProcess),
            "cgi" => Ok(Self::Cgi(rest.into())),
            "file" => Ok(Self::File(some("file", "a folder")?.into())),
            "app" => Ok(Self::App(some("app", "a name")?.into())),
            _ => Err(AddressError::UnknownScheme(scheme.into())),
        }
    }
}

/// Whether it ends in a port and is no path: `127.0.0.1:8080`, `:8080`, `8080`.
fn is_host_and_port(text: &str) -> bool {
    let port = text.rsplit(':').next().unwrap_or_default();
    !text.contains('/') && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

impl Endpoint {
    fn parse(text: &str, default_port: Option<u16>) -> Result<Self, AddressError> {
        if let Some(authority) = text.strip_prefix("//") {
            return Self::parse_authority(authority, default_port);
        }
        match text.strip_prefix('@') {
            Some("") => Err(AddressError::Empty { scheme: "@", expected: "a name" }),
            Some(name) => Ok(Self::Abstract(name.into())),
            None if text == "fd" => Ok(Self::Inherited),
            // Nobody calls a socket so, and nobody who forgot the slashes looks for a file.
            None if is_host_and_port(text) => Err(AddressError::NoSlashes(text.into())),
            None => Ok(Self::Unix(text.into())),
        }
    }

    fn parse_authority(authority: &str, default_port: Option<u16>) -> Result<Self, AddressError> {
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if let Some(slash) = authority.find('/') {
            return Err(AddressError::Path(authority[slash..].into()));
        }
        let brackets = || AddressError::Brackets(authority.into());
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']').ok_or_else(brackets)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| brackets())?;
                match after {
                    "" => (host, None),
                    after => (host, Some(after.strip_prefix(':').ok_or_else(brackets)?)),
                }
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(brackets()),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(AddressError::NoHost(authority.into()));
        }
        let port = match (port, default_port) {
            // `parse` alone would take a sign.
            (Some(port), _) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().map_err(|_| AddressError::Port(port.into()))?
            }
            (Some(port), _) => return Err(AddressError::Port(port.into())),
            (None, Some(port)) => port,
            (None, None) => return Err(AddressError::NoPort(authority.into())),
        };
        Ok(Self::Tcp { host: host.into(), port })
    }
}

/// As it is written; reading that gives the same address.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(endpoint) => write!(f, "http:{endpoint}"),
            Self::Https(endpoint) => write!(f, "https:{endpoint}"),
            Self::FastCgi(endpoint) => write!(f, "fastcgi:{endpoint}"),
            Self::FastCgiProgram(path) => write!(f, "fastcgi:exec:{}", path.display()),
            Self::CgiProcess => f.write_str("cgi:"),
            Self::Cgi(path) => write!(f, "cgi:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::App(name) => write!(f, "app:{name}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "//[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "//{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Inherited => f.write_str("fd"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.into(), port }
    }

    #[test]
    fn every_form_is_read_and_written() {
        let table = [
            ("http://127.0.0.1:8080", Address::Http(tcp("127.0.0.1", 8080))),
            ("http://[::1]:8080", Address::Http(tcp("::1", 8080))),
            ("http:/run/a.sock", Address::Http(Endpoint::Unix("/run/a.sock".into()))),
            ("http:fd", Address::Http(Endpoint::Inherited)),
            ("https://example.org:8443", Address::Https(tcp("example.org", 8443))),
            ("fastcgi://localhost:9000", Address::FastCgi(tcp("localhost", 9000))),
            ("fastcgi:/run/a.sock", Address::FastCgi(Endpoint::Unix("/run/a.sock".into()))),
            ("fastcgi:run/a.sock", Address::FastCgi(Endpoint::Unix("run/a.sock".into()))),
            ("fastcgi:./fd", Address::FastCgi(Endpoint::Unix("./fd".into()))),
            ("fastcgi:./9000", Address::FastCgi(Endpoint::Unix("./9000".into()))),
            ("fastcgi:worker-1.sock", Address::FastCgi(Endpoint::Unix("worker-1.sock".into()))),
            ("fastcgi:@a", Address::FastCgi(Endpoint::Abstract("a".into()))),
            ("fastcgi:fd", Address::FastCgi(Endpoint::Inherited)),
            ("fastcgi:exec:/bin/app", Address::FastCgiProgram("/bin/app".into())),
            ("cgi:", Address::CgiProcess),
            ("cgi:/usr/lib/cgi-bin/", Address::Cgi("/usr/lib/cgi-bin/".into())),
            ("file:site", Address::File("site".into())),
            ("app:environ", Address::App("environ".into())),
        ];
        for (text, address) in table {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("https://example.org".parse(), Ok(Address::Https(tcp("example.org", 443))));
        assert_eq!("http://example.org/".parse(), Ok(Address::Http(tcp("example.org", 80))));
    }

    #[test]
    fn every_mistake_has_its_own_message() {
        let table = [
            ("", "expected an address such as"),
            ("/run/a.sock", "expected an address such as"),
            ("ftp://x", "got the scheme \"ftp\""),
            ("http:", "after \"http:\", got nothing"),
            ("fastcgi:", "after \"fastcgi:\", got nothing"),
            ("fastcgi:exec:", "a program's path"),
            ("fastcgi:@", "expected a name"),
            ("fastcgi://localhost", "without a port"),
            ("fastcgi://:9000", "expected a host"),
            ("http:127.0.0.1:8080", "expected // before HOST:PORT"),
            ("http:[::1]:8080", "expected // before HOST:PORT"),
            ("fastcgi::9000", "expected // before HOST:PORT"),
            ("fastcgi:9000", "expected // before HOST:PORT"),
            ("fastcgi://h:", "expected a port from 0 to 65535, got \"\""),
            ("fastcgi://h:65536", "got \"65536\""),
            ("fastcgi://h:+1", "got \"+1\""),
            ("fastcgi://::1:9000", "IPv6 address in brackets"),
            ("fastcgi://[::1", "IPv6 address in brackets"),
            ("fastcgi://[::1]9000", "IPv6 address in brackets"),
            ("fastcgi://[x]:1", "IPv6 address in brackets"),
            ("http://h:80/path", "got \"/path\""),
            ("https:/run/x.sock", "expected https://HOST"),
            ("file:", "a folder"),
            ("app:", "a name"),
            ("cgi:/a\0b", "NUL"),
        ];
        for (text, part) in table {
            let message = text.parse::<Address>().expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
