//! The options that say who the client is and what it may, and the middleware's settings that are made of them.

use std::time::Duration;

use clap::Args;
use gatespan::address::{Address, Network, Trusted};
use gatespan::middleware::{AuthorizerConfig, ClientAddressConfig, ClientField};

use super::set;
use crate::bridge::target;
use crate::values;

#[derive(Debug, Args)]
#[command(next_help_heading = "Who the client is, and what it may")]
pub(crate) struct Clients {
    /// Ask this FastCGI authorizer, or any other target, about each request first: 200 lets it through, anything else is the answer. With a
    /// --route's prefix before it, for what is sent there alone. May be repeated
    #[arg(long = "authorizer", value_name = "[/PREFIX=]TO", value_parser = parse_authorizer)]
    pub(crate) authorizers: Vec<(Option<String>, Address)>,
    /// How long an authorizer may take for its verdict; then 504 [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, requires = "authorizers")]
    pub(crate) authorizer_timeout: Option<Duration>,
    /// A proxy whose word is taken for who its client is: an address, a network such as 10.0.0.0/8, or unix: for peers on a Unix socket. May be
    /// repeated
    #[arg(long = "trusted-proxy", value_name = "NETWORK", value_parser = parse_trusted)]
    pub(crate) trusted: Vec<Trusted>,
    /// Where trusted proxies say who the client is, which is then REMOTE_ADDR: x-forwarded-for, forwarded, or another field, such as X-Real-IP
    /// [default: the peer is the client]
    #[arg(long, value_name = "FIELD", value_parser = parse_client_field, requires = "trusted")]
    pub(crate) resolve_client: Option<ClientField>,
}

fn parse_authorizer(text: &str) -> Result<(Option<String>, Address), String> {
    if !text.starts_with('/') {
        return Ok((None, target::parse(text)?));
    }
    let (prefix, to) = values::pair(text, "/PREFIX=TO, such as /admin=fastcgi:/run/auth.sock")?;
    Ok((Some(values::prefix(prefix)?), target::parse(to)?))
}

fn parse_trusted(text: &str) -> Result<Trusted, String> {
    let mut trusted = Trusted::default();
    match text {
        "unix:" => trusted.unix = true,
        network => trusted.networks.push(network.parse::<Network>().map_err(|error| error.to_string())?),
    }
    Ok(trusted)
}

fn parse_client_field(text: &str) -> Result<ClientField, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match text.to_ascii_lowercase().as_str() {
        "x-forwarded-for" => Ok(ClientField::XForwarded),
        "forwarded" => Ok(ClientField::Forwarded),
        "" => Err("expected the name of a field, such as X-Real-IP, got nothing".into()),
        _ if text.bytes().all(is_token) => Ok(ClientField::Named(text.into())),
        _ => Err(format!("expected the name of a field, such as X-Real-IP, got \"{text}\"")),
    }
}

impl Clients {
    /// All proxies that were named.
    pub(crate) fn trusted(&self) -> Trusted {
        let mut all = Trusted::default();
        for trusted in &self.trusted {
            all.networks.extend(trusted.networks.iter().cloned());
            all.unix |= trusted.unix;
        }
        all
    }

    pub(crate) fn authorizer(&self) -> AuthorizerConfig {
        let mut config = AuthorizerConfig::default();
        set(&mut config.timeout, self.authorizer_timeout);
        config
    }

    pub(crate) fn client_address(&self) -> Option<ClientAddressConfig> {
        let field = self.resolve_client.clone()?;
        Some(ClientAddressConfig { trusted: self.trusted(), field, ..ClientAddressConfig::default() })
    }
}
