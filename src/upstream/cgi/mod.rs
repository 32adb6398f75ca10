//! CGI programs as applications: the script host.
