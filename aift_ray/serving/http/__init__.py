"""HTTP: routes, requests, authentication, server-sent events, the web page."""
