//! What can't be together on the command line. An option that would have no effect is refused where somebody might count on it; which options
//! are for which targets is said in [`super::effect`].

use gatespan::address::{Address, Endpoint};

use super::{Arguments, UsageError};

impl Arguments {
    /// What can't be together. An option that would have no effect is refused where somebody might count on it.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        let is_http = matches!(self.from, Address::Http(_));
        let is_script = self.from == Address::CgiProcess;
        let at = |wanted: fn(&Endpoint) -> bool| match &self.from {
            Address::Http(endpoint) | Address::FastCgi(endpoint) => wanted(endpoint),
            _ => false,
        };
        let listening = &self.listening;
        let mistakes = [
            (
                listening.max_body.is_some() && !is_http,
                "--max-body is for http: FROM; elsewhere the web server limits bodies (client_max_body_size in nginx)",
            ),
            (
                !listening.allow.is_empty()
                    && (is_http || !at(|endpoint| matches!(endpoint, Endpoint::Tcp { .. } | Endpoint::Inherited))),
                "--allow is for fastcgi://HOST:PORT; elsewhere the address or the socket's mode says who may connect",
            ),
            (
                !listening.allow_users.is_empty()
                    && (is_http || !at(|endpoint| matches!(endpoint, Endpoint::Abstract(_) | Endpoint::Inherited))),
                "--allow-user is for fastcgi:@NAME; elsewhere the socket's mode and owner say who may connect",
            ),
            (
                listening.socket_owner.is_some() && !at(|endpoint| matches!(endpoint, Endpoint::Unix(_))),
                "--socket-owner is for a socket in the file system, such as fastcgi:/run/gatespan.sock",
            ),
            (
                is_http && self.scripts.stderr_to_server,
                "--stderr-to-server is for fastcgi: and cgi: FROM; elsewhere there is no web server, and standard error is in this log",
            ),
            (
                is_script && self.script_name.is_some(),
                "--script-name is not for cgi: FROM; the web server that starts the script says what it is called",
            ),
            (
                is_script && self.log.access_log.as_deref().is_some_and(|path| path == "-"),
                "--access-log - is not for cgi: FROM, whose standard output is the answer",
            ),
        ];
        match mistakes.into_iter().find(|(is_made, _)| *is_made) {
            Some((_, message)) => Err(UsageError(message.into())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::tests::arguments;

    #[test]
    fn what_can_not_be_together_is_refused() {
        for words in [
            &["fastcgi:@a", "app:hello", "--max-body", "1M"][..],
            &["cgi:", "app:hello", "--max-body", "1M"],
            &["http://127.0.0.1:0", "app:hello", "--allow", "127.0.0.1"],
            &["fastcgi:/a.sock", "app:hello", "--allow", "127.0.0.1"],
            &["fastcgi:/a.sock", "app:hello", "--allow-user", "0"],
            &["http://127.0.0.1:0", "app:hello", "--socket-owner", "0"],
            &["http://127.0.0.1:0", "app:hello", "-f"],
            &["cgi:", "app:hello", "--script-name", "/a"],
            &["cgi:", "app:hello", "--access-log", "-"],
        ] {
            assert!(arguments(words).check().is_err(), "{words:?}");
        }
        arguments(&["fastcgi:/a.sock", "app:hello", "--socket-owner", "0"]).check().unwrap();
        arguments(&["fastcgi:fd", "app:hello", "--allow", "::1", "--allow-user", "0"]).check().unwrap();
    }
}
