//! FastCGI servers as applications.
