//! The variables that steer loaders, shells and interpreters, which no request brings to a script.

/// Whether a variable steers the loader, a shell, an interpreter, or what other programs these start, so that who may set it runs code of their
/// own. What glibc takes from set-user-ID programs is part of it.
///
/// Not among them is what a program's own documentation has web servers send, such as GITWEB_CONFIG or GIT_PROJECT_ROOT.
pub fn steers(name: &[u8]) -> bool {
    NAMES.binary_search_by(|other| other.as_bytes().cmp(name)).is_ok()
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Sorted, for the search.
const NAMES: &[&str] = &[
    "ASAN_OPTIONS",
    "AWKLIBPATH",
    "AWKPATH",
    "BASHOPTS",
    "BASH_ENV",
    "BASH_LOADABLES_PATH",
    "BASH_XTRACEFD",
    "CDPATH",
    "CLASSPATH",
    "EDITOR",
    "ENV",
    "FPATH",
    "GCONV_PATH",
    "GEM_HOME",
    "GEM_PATH",
    "GETCONF_DIR",
    "GIT_ASKPASS",
    "GIT_EDITOR",
    "GIT_EXEC_PATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_PAGER",
    "GIT_PROXY_COMMAND",
    "GIT_SEQUENCE_EDITOR",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_TEMPLATE_DIR",
    "GLIBC_TUNABLES",
    "GLOBIGNORE",
    "GODEBUG",
    "GUILE_LOAD_COMPILED_PATH",
    "GUILE_LOAD_PATH",
    "HGRCPATH",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LESSCLOSE",
    "LESSOPEN",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LOCALDOMAIN",
    "LOCPATH",
    "LSAN_OPTIONS",
    "MSAN_OPTIONS",
    "NIS_PATH",
    "NLSPATH",
    "NODE_COMPILE_CACHE",
    "NODE_EXTRA_CA_CERTS",
    "NODE_OPTIONS",
    "NODE_PATH",
    "NODE_REDIRECT_WARNINGS",
    "NODE_REPL_EXTERNAL_MODULE",
    "NODE_TLS_REJECT_UNAUTHORIZED",
    "NODE_V8_COVERAGE",
    "NOTIFY_SOCKET",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "PAGER",
    "PHPRC",
    "PHP_ADMIN_VALUE",
    "PHP_INI_SCAN_DIR",
    "PHP_VALUE",
    "PROMPT_COMMAND",
    "PS4",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "RUBYLIB",
    "RUBYOPT",
    "R_HOME",
    "R_LIBS",
    "R_PROFILE",
    "SHELLOPTS",
    "SSH_ASKPASS",
    "SSLKEYLOGFILE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TCLLIBPATH",
    "TCL_LIBRARY",
    "TERMCAP",
    "TERMINFO",
    "TERMINFO_DIRS",
    "TMPDIR",
    "TSAN_OPTIONS",
    "TZDIR",
    "UBSAN_OPTIONS",
    "VISUAL",
    "ZDOTDIR",
    "_JAVA_OPTIONS",
];
/// What all names that begin so have in common.
const PREFIXES: &[&str] = &[
    "BASH_FUNC_",
    "BUNDLE_",
    "COMPlus_",
    "CORECLR_",
    "COR_",
    "DOTNET_",
    "DYLD_",
    "ERL_",
    "GIT_CONFIG",
    "LD_",
    "LUA_CPATH",
    "LUA_INIT",
    "LUA_PATH",
    "MALLOC_",
    "PERL",
    "PYTHON",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_steer_are_sorted_for_the_search() {
        assert!(NAMES.is_sorted());
        for name in [
            "ASAN_OPTIONS",
            "BASH_ENV",
            "ENV",
            "IFS",
            "PS4",
            "RES_OPTIONS",
            "RESOLV_HOST_CONF",
            "ZDOTDIR",
            "_JAVA_OPTIONS",
        ] {
            assert!(steers(name.as_bytes()), "{name}");
        }
        for name in ["", "E", "ENVX", "PS", "PATH", "HTTP_LD_PRELOAD", "GIT_HTTP_EXPORT_ALL"] {
            assert!(!steers(name.as_bytes()), "{name}");
        }
    }
}
