//! Via: which proxies a message has passed (RFC 9110 7.6.3).

use http::Version;
use http::header::{self, HeaderMap, HeaderValue};

use super::Config;

/// Adds this proxy behind those that are named already. `version` is how the message came here.
pub(super) fn add(fields: &mut HeaderMap, version: &str, config: &Config) {
    let Some(name) = &config.via else { return };
    let mut list = Vec::with_capacity(32);
    for value in fields.get_all(header::VIA) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(format!("{version} {name}").as_bytes());
    // What was a value before and a name that was checked make a value again.
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        fields.insert(header::VIA, value);
    }
}

/// How Via writes a version.
pub(super) fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// The same of SERVER_PROTOCOL.
pub(super) fn version_of(protocol: &[u8]) -> &'static str {
    match protocol {
        b"HTTP/1.0" => "1.0",
        [b'H', b'T', b'T', b'P', b'/', b'2', ..] => "2",
        [b'H', b'T', b'T', b'P', b'/', b'3', ..] => "3",
        _ => "1.1",
    }
}

/// Whether a proxy can be called so: a token, or a host with a port.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(before: &[&'static str], name: Option<&str>) -> Option<String> {
        let mut fields = HeaderMap::new();
        for value in before {
            fields.append(header::VIA, HeaderValue::from_static(value));
        }
        add(&mut fields, version_of(b"HTTP/2.0"), &Config { via: name.map(Into::into), ..Config::default() });
        let all: Vec<_> = fields.get_all(header::VIA).iter().map(|value| value.to_str().unwrap().to_owned()).collect();
        (!all.is_empty()).then(|| all.join("|"))
    }

    #[test]
    fn a_proxy_names_itself_behind_those_before_it() {
        assert_eq!(via(&[], Some("gatespan")).as_deref(), Some("2 gatespan"));
        assert_eq!(
            via(&["1.0 fred", "1.1 p.example.com"], Some("own")).as_deref(),
            Some("1.0 fred, 1.1 p.example.com, 2 own")
        );
        assert_eq!(via(&["1.0 fred"], None).as_deref(), Some("1.0 fred"));
        assert_eq!(via(&[], None), None);
    }

    #[test]
    fn a_name_is_one_word() {
        assert!(is_name("gatespan") && is_name("host.example:8080") && is_name("[::1]:80"));
        assert!(!is_name("") && !is_name("a b") && !is_name("a,b") && !is_name("a\r\nb") && !is_name("(a)"));
    }
}
