# Health check
curl http://<SERVER>:8000/health
# Returns: {"status": "healthy"}

# API info
curl http://<SERVER>:8000/
# Returns: API description and defaults

# Interactive docs (Swagger UI)
# Open in browser: http://<SERVER>:8000/docs
