//! What the command line says beside FROM and TO: a file for each subject, with the options, and what becomes of them in the library's settings.

pub(super) mod clients;
pub(super) mod listening;
pub(super) mod logging;
pub(super) mod scripts;
pub(super) mod servers;
pub(super) mod sites;

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

/// Takes an option's value over, where there is one: else the library's own default stays.
fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

#[cfg(test)]
mod tests {
    use gatespan::Options;
    use gatespan::middleware::Redirects;
    use gatespan::upstream::{cgi, fastcgi, files, http, site};

    use crate::bridge::arguments::tests::arguments;

    #[test]
    fn the_defaults_that_help_shows_are_the_librarys() {
        let arguments = arguments(&["http://127.0.0.1:0", "app:hello"]);
        let config = arguments.cgi_config().unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", cgi::Config::default()));
        let defaults = [
            (format!("{:?}", arguments.fastcgi_config()), format!("{:?}", fastcgi::Config::default())),
            (format!("{:?}", arguments.http_config()), format!("{:?}", http::Config::default())),
            (format!("{:?}", arguments.files_config().unwrap()), format!("{:?}", files::Config::default())),
            (format!("{:?}", arguments.site_config().unwrap()), format!("{:?}", site::Config::default())),
            (format!("{:?}", arguments.program_config()), format!("{:?}", fastcgi::ProgramConfig::new(""))),
        ];
        for (own, library) in defaults {
            assert_eq!(own, library);
        }
        let options = arguments.options();
        let default = Options::default();
        assert_eq!(options.listen.socket_mode, default.listen.socket_mode);
        assert_eq!(options.fastcgi.shutdown_timeout, default.fastcgi.shutdown_timeout);
        assert_eq!(options.http.shutdown_timeout, default.http.shutdown_timeout);
        assert_eq!(options.fastcgi.max_connections, default.fastcgi.max_connections);
        assert_eq!(options.fastcgi.script_name, None);
        assert_eq!(arguments.max_redirects, Redirects::default().max);
    }

    #[test]
    fn routes_are_found_in_the_whole_path_behind_fastcgi() {
        let words = ["fastcgi:@a", "app:hello", "--route", "/a=app:echo"];
        assert_eq!(arguments(&words).options().fastcgi.script_name, Some(Vec::new()));
    }
}
