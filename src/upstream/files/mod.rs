//! A folder of files as an application.
