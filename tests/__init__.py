"""Real servers, real SDKs, real sockets; see each package."""
