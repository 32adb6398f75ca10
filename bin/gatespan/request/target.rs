//! What TO names.

use std::path::PathBuf;

use gatespan::address::{Address, AddressError, Endpoint};

/// What answers, and the path that stood behind an HTTP server's address.
#[derive(Debug, Clone)]
pub(super) enum To {
    FastCgi(Endpoint),
    /// A FastCGI program that is started for this request.
    Program(PathBuf),
    /// CGI programs or an HTTP server, through the application interface.
    Application(Target),
}

#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) path: Option<String>,
}

pub(super) fn is_http(target: &Target) -> bool {
    matches!(target.address, Address::Http(_) | Address::Https(_))
}

pub(super) fn parse_to(text: &str) -> Result<To, String> {
    let (place, path) = split_url(text);
    let address: Address = place.parse().map_err(|error| match error {
        AddressError::NoScheme(_) | AddressError::UnknownScheme(_) => expected(text),
        error => error.to_string(),
    })?;
    match address {
        Address::Http(Endpoint::Inherited) | Address::FastCgi(Endpoint::Inherited) => Err(format!(
            "expected where the request goes, got \"{text}\": a socket that was handed over is one to listen on"
        )),
        Address::Http(Endpoint::Tcp { port: 0, .. })
        | Address::Https(Endpoint::Tcp { port: 0, .. })
        | Address::FastCgi(Endpoint::Tcp { port: 0, .. }) => {
            Err(format!("expected the port that a server listens on, got \"{text}\""))
        }
        Address::FastCgi(endpoint) => Ok(To::FastCgi(endpoint)),
        Address::FastCgiProgram(path) => Ok(To::Program(path)),
        address @ (Address::Cgi(_) | Address::Http(_) | Address::Https(_)) => {
            Ok(To::Application(Target { address, path: path.map(str::to_owned) }))
        }
        _ => Err(expected(text)),
    }
}

/// The address and the path of a URL, which people have at hand for HTTP.
fn split_url(text: &str) -> (&str, Option<&str>) {
    let Some(authority) = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme)) else {
        return (text, None);
    };
    match authority.find(['/', '?', '#']) {
        Some(end) if &authority[end..] != "/" => {
            let at = text.len() - authority.len() + end;
            (&text[..at], Some(&text[at..]))
        }
        _ => (text, None),
    }
}

fn expected(text: &str) -> String {
    format!(
        "expected what answers, such as fastcgi:/SOCKET, fastcgi://HOST:PORT, cgi:/FOLDER/ or http://HOST:PORT, got \"{text}\""
    )
}

impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FastCgi(endpoint) => write!(f, "fastcgi:{endpoint}"),
            Self::Program(path) => write!(f, "fastcgi:exec:{}", path.display()),
            Self::Application(target) => target.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_an_address_and_a_path() {
        for (text, address, path) in [
            ("http://h:1/a?b", "http://h:1", Some("/a?b")),
            ("https://h/a", "https://h:443", Some("/a")),
            ("http://h:1?b", "http://h:1", Some("?b")),
            ("http://h:1/", "http://h:1", None),
            ("http:/run/a.sock", "http:/run/a.sock", None),
        ] {
            match parse_to(text) {
                Ok(To::Application(target)) => {
                    assert_eq!((&*target.address.to_string(), target.path.as_deref()), (address, path), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_nothing_can_be_sent_to_is_refused() {
        for (text, part) in [
            ("fastcgi:fd", "one to listen on"),
            ("http:fd", "one to listen on"),
            ("fastcgi://h:0", "expected the port"),
            ("cgi:", "expected what answers"),
            ("file:/a", "expected what answers"),
            ("app:hello", "expected what answers"),
            ("/run/a.sock", "expected what answers"),
            ("fastcgi://h:1/a", "\"/a\""),
        ] {
            let message = parse_to(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
