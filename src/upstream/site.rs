//! A PHP site.
